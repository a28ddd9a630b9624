"""The options of an arm, as the replica reads them."""

from collections.abc import Callable

from omegaconf import OmegaConf

from benchmarks.experiment.arms import Arm
from benchmarks.experiment.policy import Verifier
from verl_cipo.core.config import CIPOConfig
from verl_cipo.integration.reward_function import load

KNOB = "+algorithm.cipo."
REWARD = "reward.custom_reward_function."
OWN = "replica.own="
"""Option of a control: weight of the log-likelihood of a prompt's own right attempts, where few are right."""
BY_STD = "algorithm.norm_adv_by_std_in_grpo="
"""verl's own option: whether advantages are divided by the std of their group."""


def knobs(arm: Arm, seed: int) -> CIPOConfig:
    """`algorithm.cipo` of an arm; plain GRPO is that of no anchors. Raises: ValueError on an option of another kind."""
    if other := [option for option in arm.options if not option.startswith((KNOB, REWARD, OWN, BY_STD))]:
        raise ValueError(f"arm {arm.name}: the replica does not know {' '.join(other)}")
    if arm.algo == "grpo":
        return CIPOConfig(replay_fraction=0.0, val_corrections=0)
    set_here = [option.removeprefix(KNOB) for option in arm.options if option.startswith(KNOB)]
    # As through verl: examples/tiny/task.py.
    mapping = OmegaConf.to_container(OmegaConf.from_dotlist(["prompt.standalone=false", *set_here]))
    assert isinstance(mapping, dict)
    return CIPOConfig.from_mapping({"seed": seed, **{str(key): value for key, value in mapping.items()}})


def divides_by_std(arm: Arm) -> bool:
    """Whether an arm's advantages are divided by the std of their group, as verl has it by default."""
    return f"{BY_STD}false" not in arm.options


def verifiers(arm: Arm, cipo: CIPOConfig) -> dict[str, Verifier]:
    """The reward function and the second verifier that an arm names, as arguments of `Policy`."""
    own = dict(option.removeprefix(REWARD).split("=", 1) for option in arm.options if option.startswith(REWARD))
    named = {"verifier": f"{own['path']}:{own['name']}" if own else None, "second": cipo.second_verifier}
    return {place: _verifier(load(name)) for place, name in named.items() if name}


def _verifier(function: Callable[..., float]) -> Verifier:
    return lambda text, answer: function("openai/gsm8k", text, answer) == 1
