"""verl's single-turn agent loop with response lengths that are drawn, the same for every schedule.

The engine is asked for exactly as many tokens as the draw says. All schedules of a round have the same lengths for the
attempts, and the same for the second half, be it corrections or GRPO's further rollouts: which group of them starts
first, second, and so on, decides which lengths it gets.
"""

from typing import Any, ClassVar

from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from benchmarks.generation.draws import quantile, uniform
from verl_cipo.core.keys import GroupName

NAME = "drawn_length_agent"


class DrawnLengthAgentLoop(SingleTurnAgentLoop):
    """One turn of a drawn length.

    Args:
        law, median, spread: of the lengths, in tokens; cut at ``rollout.response_length``.
        attempts: rollouts of a prompt that count as attempts; further ones are the second half.
        phases: generation phases of a round. Lengths depend on the round, ``global_steps // phases``, not on the phase.
        seed: of the draws.
    """

    started: ClassVar[dict[tuple[int, bool], dict[tuple[str, int], int]]] = {}
    """(global_steps, second half) -> uid and how many n sessions before -> how many groups had started before it, in
    this process."""

    def __init__(
        self, *args: Any, law: str, median: float, spread: float, attempts: int, phases: int, seed: int, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self._law = {"law": law, "median": median, "spread": spread}
        self._attempts, self._phases, self._seed = attempts, phases, seed

    def tokens(self, *, uid: str, session: int, step: int) -> int:
        """The length of a session."""
        second = GroupName.parse(uid).anchor is not None or session >= self._attempts
        groups = self.started.setdefault((step, second), {})
        place = groups.setdefault((uid, session // self._attempts), len(groups))
        u = uniform(self._seed, step // self._phases, second, place, session % self._attempts)
        return min(max(round(quantile(u=u, **self._law)), 1), self.response_length)

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> Any:
        tokens = self.tokens(uid=kwargs["uid"], session=kwargs["session_id"], step=int(kwargs["global_steps"]))
        return await super().run({**sampling_params, "max_tokens": tokens, "ignore_eos": True}, **kwargs)


def entry(*, law: str, median: float, spread: float, attempts: int, phases: int, seed: int) -> dict[str, Any]:
    """The loop's entry in the file that ``rollout.agent.agent_loop_config_path`` names; arguments as of the class."""
    target = f"{DrawnLengthAgentLoop.__module__}.{DrawnLengthAgentLoop.__qualname__}"
    options = {"law": law, "median": median, "spread": spread, "attempts": attempts, "phases": phases, "seed": seed}
    return {"name": NAME, "_target_": target, **options}
