"""The agent-loop manager of CIPO: dispatches prompts to the workers, with the coordinator next to them.

Seam: ``rollout.agent.agent_loop_manager_class`` names :class:`CIPOAgentLoopManager`. Where ``algorithm.cipo.manager``
names a manager of the user's, what is made is that one with :class:`DispatchesCorrections`.
"""

from collections.abc import Mapping
from typing import Any

import ray
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.utils import tensordict_utils as tu

from verl_cipo.core.config import CIPOConfig
from verl_cipo.integration.group_filter import filter_metric
from verl_cipo.integration.rollout import payloads
from verl_cipo.integration.rollout.coordinator import AnchorCoordinator
from verl_cipo.integration.rollout.over import worker_over
from verl_cipo.integration.rollout.worker import TICKET
from verl_cipo.integration.settings import cipo_config, load_manager
from verl_cipo.integration.stopwatch import Stopwatch


def start_coordinator(cipo: CIPOConfig, train_batch_size: int, *, filters: bool = False) -> ray.actor.ActorHandle:
    """The coordinator, as an actor that reserves no CPU.

    One that dies is started anew and knows no batch: prompts under way lose their corrections, and with schedule=replay
    the next step has none.
    """
    coordinator = ray.remote(AnchorCoordinator).options(
        num_cpus=0, max_concurrency=100_000, max_restarts=-1, max_task_retries=-1
    )
    return coordinator.remote(cipo.to_mapping(), train_batch_size, filters=filters)


class DispatchesCorrections:
    """A mixin for verl's manager: its workers correct attempts, with the coordinator beside them."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(worker_over(self.agent_loop_workers_class))
        self.rho = 0.0
        """Share of right attempts among the anchors of the next batch; the trainer sets it."""
        self.shares: Mapping[str, float] | None = None
        """Of core.steering.budget, for the next batch; the trainer sets it. None with budget=fixed."""
        self.replaces = 0
        """How many prompts of the next batch stand in for evicted ones; the replay buffer sets it."""
        self._cipo = cipo_config(self.config)
        self._batches = 0
        self._own_time = Stopwatch()
        filters = filter_metric(self.config) is not None
        self._coordinator = start_coordinator(self._cipo, self.config.data.train_batch_size, filters=filters)

    def generate_sequences(self, prompts: TensorDict) -> None:
        ticket: dict[str, Any] = {"coordinator": self._coordinator, "batch": None}
        if not tu.get_non_tensor_data(prompts, "validate", False) and self._cipo.rolls_out:
            ticket["batch"] = self._batches
            self._batches += 1
            step = int(tu.get_non_tensor_data(prompts, "global_steps", 0))
            uids = [str(uid) for uid in prompts["uid"]]
            told = {"uids": uids, "rho": self.rho, "step": step, "shares": self.shares, "replaces": self.replaces}
            with self._own_time.running():
                ray.get(self._coordinator.open.remote(ticket["batch"], **told))
        tu.assign_non_tensor_data(prompts, TICKET, ticket)
        super().generate_sequences(prompts)

    def admitted(self) -> set[str]:
        """Prompts of the step whose attempts have ended and that stay in it; empty where no groups are filtered."""
        return ray.get(self._coordinator.admitted.remote())

    def draw_rest(self) -> None:
        """The step has all prompts that it takes: anchors are drawn among those that were admitted."""
        ray.get(self._coordinator.draw_rest.remote())

    def engines_sleep(self) -> None:
        """The rollout engines sleep while verl trains: no timeout of CIPO's runs until :meth:`engines_wake`."""
        ray.get(self._coordinator.engines_sleep.remote())

    def engines_wake(self) -> None:
        """The rollout engines go on."""
        ray.get(self._coordinator.engines_wake.remote())

    def pop_statistics(self) -> dict[str, float]:
        """Selection and fault counts since the last call, and seconds of the dispatch in the driver."""
        return ray.get(self._coordinator.pop_statistics.remote()) | {"seconds/driver": self._own_time.pop()}

    def pop_validation(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """The validation's attempts since the last call, each with its corrections, and what was left out."""
        return ray.get(self._coordinator.pop_validation.remote())

    def pool_state(self) -> dict[str, Any]:
        """The pool of schedule=replay, with the texts themselves, and what rounding left over; for a checkpoint."""
        state = ray.get(self._coordinator.pool_state.remote())
        return state | {name: payloads.fetched(state[name]) for name in ("ready", "filling")}

    def restore_pool(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`pool_state` returned, before the first batch."""
        ray.get(self._coordinator.restore_pool.remote(state))


class CIPOAgentLoopManager(DispatchesCorrections, AgentLoopManagerTQ):
    """verl's manager, with corrections."""

    @classmethod
    def create(cls, config: DictConfig, *args: Any, **kwargs: Any) -> Any:
        """As verl's; over the manager that ``algorithm.cipo.manager`` names, where it names one."""
        name = cipo_config(config).manager
        if name is None:
            return super().create(config, *args, **kwargs)
        base = load_manager(name)
        if issubclass(base, DispatchesCorrections):
            return base.create(config, *args, **kwargs)
        return type(f"CIPO{base.__name__}", (DispatchesCorrections, base), {}).create(config, *args, **kwargs)
