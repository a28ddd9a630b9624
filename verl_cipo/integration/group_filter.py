"""``algorithm.filter_groups`` (DAPO's dynamic sampling) beside corrections: what is read of it, and what is refused.

verl evicts prompts whose trajectories all have one value of a metric, and samples others in their place. Attempts alone
decide that: in the rollout (rollout/coordinator.py), so that no anchor is drawn from what is evicted, and in the replay
buffer (train/replay_buffer.py).
"""

from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from verl_cipo.core.config import ROOT, CIPOConfig, CIPOConfigError

REWARD = "reward"
"""The metric that verl reads off the rewards; any other is one of the verifier's ``reward_extra_info``."""
_ENABLE = "algorithm.filter_groups.enable"


def filter_metric(config: DictConfig) -> str | None:
    """``algorithm.filter_groups.metric``; None where groups are not filtered."""
    if not OmegaConf.select(config, _ENABLE):
        return None
    return str(config.algorithm.filter_groups.metric)


def check_filter(
    config: DictConfig, cipo: CIPOConfig, refuse: Callable[[str, str], None], *, asynchronous: bool
) -> None:
    """Refuse what group filtering cannot be combined with.

    Args:
        cipo: with its schedule resolved.
        refuse: raises, given a key and what is allowed.
        asynchronous: whether the trainer is.

    Raises:
        CIPOConfigError: names the key, its value and what is allowed.
    """
    if not OmegaConf.select(config, _ENABLE):
        if cipo.keep_all_wrong > 0:
            raise CIPOConfigError(
                f"{ROOT}.keep_all_wrong={cipo.keep_all_wrong} with {_ENABLE}=false: no prompt is evicted, so none can "
                f"be kept; set {_ENABLE}=true or {ROOT}.keep_all_wrong=0"
            )
        return
    if not config.trainer.use_v1:
        refuse(_ENABLE, "verl 0.9.1 filters no groups with trainer.use_v1=false, set trainer.use_v1=true")
    if not config.algorithm.filter_groups.metric:
        refuse("algorithm.filter_groups.metric", "name what verl is to filter by, reward or acc say")
    if OmegaConf.select(config, "trainer.v1.sampler.custom_sampler.path"):
        refuse(
            "trainer.v1.sampler.custom_sampler.path",
            f"with {_ENABLE}=true a sampler of your own would have to filter by attempts alone, set it to null",
        )
    if asynchronous and cipo.rolls_out and not cipo.replays:
        without = f" without {ROOT}.aux.kind=contrastive" if cipo.aux.contrastive else ""
        refuse(
            _ENABLE,
            f"with {ROOT}.schedule={cipo.schedule} an asynchronous trainer has no fixed number of prompts a step among "
            f"which anchors could be drawn; use schedule=replay{without}",
        )
    if cipo.keep_all_wrong > 0:
        _check_kept(cipo, refuse)


def _check_kept(cipo: CIPOConfig, refuse: Callable[[str, str], None]) -> None:
    knob = f"{ROOT}.keep_all_wrong"
    if not cipo.rolls_out:
        refuse(knob, "no corrections are sampled for which a prompt could be kept; set it to 0")
    if cipo.replays:
        refuse(knob, "schedule=replay corrects attempts of the step before, beside other prompts; set it to 0")
