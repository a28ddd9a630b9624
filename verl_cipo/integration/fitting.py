"""What stands against pairs, transfer, nudging and budget=auto in a run, and defaults that do without what does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from verl_cipo.core.config import ROOT, CIPOConfig
from verl_cipo.integration.group_filter import filter_metric

PLAIN = {"source": "resample", "transfer.kind": "none", "budget": "fixed"}
"""Knob of a preset -> the value that every run can have."""
_ADDED = ("source", "transfer.kind")


@dataclass(frozen=True)
class Obstacle:
    """A setting of verl that does not go with what some knobs of :data:`PLAIN` ask for, or with nudge.coef.

    key: of verl's config, or of CIPO's; allowed: why, and what to set; knobs: those of which one has to give way.
    """

    key: str
    allowed: str
    knobs: tuple[str, ...]


def obstacles(config: DictConfig, cipo: CIPOConfig) -> Iterator[Obstacle]:
    """All of a run.

    Args:
        cipo: with its schedule resolved.
    """
    if filter_metric(config) is not None and cipo.replays and cipo.moves_budget:
        allowed = (
            f"with schedule=replay the further attempts of {ROOT}.budget=auto would be made at prompts that may be "
            "evicted; use budget=fixed or another schedule"
        )
        yield Obstacle("algorithm.filter_groups.enable", allowed, ("budget",))
    if not cipo.adds_loss:
        return
    if OmegaConf.select(config, "distillation.enabled"):
        allowed = "verl's distillation loss replaces the loss that aux.coef, transfer and nudge.coef add to"
        yield Obstacle("distillation.enabled", allowed, _ADDED)
    if OmegaConf.select(config, "trainer.use_v1") is False and cipo.lambda_corr == 0 and cipo.rolls_out:
        allowed = (
            f"with trainer.use_v1=false and {ROOT}.aux.coef above 0 or {ROOT}.transfer.kind, corrections need a weight "
            f"of their own, set it above 0, {ROOT}.source=paired without transfer or trainer.use_v1=true"
        )
        yield Obstacle(f"{ROOT}.lambda_corr", allowed, _ADDED)
    if cipo.appends_rows:
        yield from _against_rows(config)


def _against_rows(config: DictConfig) -> Iterator[Obstacle]:
    """What stands against rows that the policy loss does not train."""
    which = "(pairs, contrastive, aux.coef with lambda_corr=0, transfer.kind, nudge.coef)"
    if OmegaConf.select(config, "algorithm.rollout_correction.bypass_mode"):
        allowed = (
            f"verl's loss then refuses a micro-batch of rows that the policy loss does not train {which}, and there "
            "are no log-probabilities of the old policy to compare"
        )
        yield Obstacle("algorithm.rollout_correction.bypass_mode", allowed, _ADDED)
    mode = "actor_rollout_ref.actor.policy_loss.loss_mode"
    if OmegaConf.select(config, mode) == "geo_mean":
        allowed = f"geo_mean divides by all rows of a micro-batch, including those that it does not train {which}"
        yield Obstacle(mode, allowed, _ADDED)
    for engine in ("megatron", "veomni"):
        replay = f"actor_rollout_ref.actor.{engine}.router_replay.mode"
        if OmegaConf.select(config, replay) not in (None, "disabled"):
            yield Obstacle(replay, f"the routing of rows that were never rolled out is not known {which}", _ADDED)


def fitted(config: DictConfig, mapping: Mapping[str, Any], *, asynchronous: bool) -> tuple[CIPOConfig, list[str]]:
    """The knobs of a run, its schedule resolved, and a line on each that cannot have the preset's value.

    A knob that is asked for by name stays as it is, whatever stands against it.

    Args:
        mapping: ``algorithm.cipo``; null, or no key, is the preset's value.
        asynchronous: whether the trainer is.

    Raises:
        CIPOConfigError: as ``CIPOConfig.from_mapping``.
    """

    def read(settings: Mapping[str, Any]) -> CIPOConfig:
        return CIPOConfig.from_mapping(settings).scheduled(asynchronous=asynchronous)

    cipo, lines, settings = read(mapping), [], dict(mapping)
    for obstacle in obstacles(config, cipo):
        for knob in obstacle.knobs:
            section, _, name = knob.rpartition(".")
            inner = dict(settings.get(section) or {}) if section else settings
            # Who asks for transfer.own asks for transfer.
            if inner.get(name) is not None or (knob == "transfer.kind" and inner.get("own")):
                continue
            inner[name] = PLAIN[knob]
            if section:
                settings[section] = inner
            lines.append(
                f"{ROOT}.{knob}={PLAIN[knob]}, since {obstacle.key}={OmegaConf.select(config, obstacle.key)}: "
                f"{obstacle.allowed}"
            )
    return read(settings), lines
