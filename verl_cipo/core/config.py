"""Every knob of CIPO: its default and its meaning. What it may hold is in knob_rules.py.

The values live in the YAML under `algorithm.cipo`. They are read once, here; everything behind this module
may rely on them. cipo_trainer.yaml is tested to hold the same defaults. Sections such as `prompt` are in
config_sections.py.
"""

import difflib
from collections.abc import Mapping
from dataclasses import InitVar, asdict, dataclass, field, fields, replace
from typing import Any, Literal

from verl_cipo.core.config_sections import (
    BUILT_IN,
    FOLLOWS,
    ROOT,
    SECTIONS,
    AuxConfig,
    CIPOConfigError,
    NudgeConfig,
    PromptConfig,
    TransferConfig,
    validate,
)

__all__ = ["ROOT", "AuxConfig", "CIPOConfig", "CIPOConfigError", "NudgeConfig", "PromptConfig", "TransferConfig"]

PAIRS_COEF, TRANSFER_COEF = 0.1, {"none": 0.0, "inject": 8.0, "regress": 2.0}


@dataclass(frozen=True)
class CIPOConfig:
    """All knobs of CIPO (`algorithm.cipo`). docs/method.md says where the defaults come from.

    Construction validates: a CIPOConfigError names the key, the value and what is allowed.
    """

    preset: Literal["balanced", "stream"] = "balanced"
    """What source, budget, transfer.kind and aux.by_signal are where they are null: balanced, both, auto, inject and
    true, each where the run can have it (a line says so where it cannot); stream, resample, fixed, none and false,
    which is CIPO as published."""
    replay_fraction: float = 1.0
    """Anchors per step = round(replay_fraction * prompts); 0 trains plain GRPO."""
    source: Literal["resample", "paired", "both"] = FOLLOWS
    """Where corrections come from: resample, sampled from the policy; paired, attempts of the step paired with right
    rollouts, without generation; or both; null = that of the preset."""
    n_corrections: int | None = None
    """Corrections per anchor, which form one group; null = rollout.n. A group of 1 would have no advantage."""
    schedule: Literal["streaming", "barrier", "replay", "auto"] = "auto"
    """When anchors are drawn: streaming, as prompts finish; barrier, after the last prompt of the batch; replay, from
    the attempts of the previous step, so that corrections are rolled out beside the attempts; auto, streaming, and
    replay in asynchronous trainer modes, so that no prompt waits for another, but for aux.kind=contrastive."""
    lambda_corr: float = 1.0
    """Weight of the correction stream against the base stream, each normalized by its own size."""
    lambda_risk: float = 1.0
    """Weight of the penalty on corrections that turn a right anchor wrong; without algorithm.norm_adv_by_std_in_grpo it
    is subtracted from their reward."""
    rho_init: float = 0.3
    """Share of right attempts among the anchors at step 1, and among the attempts of pairs; rho_min <= rho_init <=
    rho_max."""
    rho_min: float = 0.2
    """Lower bound of rho."""
    rho_max: float = 0.8
    """Upper bound of rho."""
    rho_target: float = 0.8
    """Target retention: the share of corrections of right anchors that are right."""
    rho_gain: float = 0.8
    """Growth of rho per unit of retention below the target (w1)."""
    rho_drop_gain: float = 0.3
    """Growth of rho per unit that retention fell since the last step (w2)."""
    rho_patience_gain: float = 0.05
    """Growth of rho per consecutive step with retention below the target, at most 3 (w3)."""
    rho_adaptive: bool = True
    """Whether rho follows the retention; false keeps it at rho_init."""
    delta_low: float = 0.375
    """Lowest pass rate of a prompt of medium difficulty, inclusive; anchors come from these first, with budget=auto
    also from prompts without a right attempt."""
    delta_high: float = 0.75
    """Highest pass rate of a prompt of medium difficulty, inclusive."""
    correct_threshold: float | Mapping[str, float] = 0.5
    """An attempt is right when its score is above this; used where the verifier gives no `acc`. One number, or one per
    data_source, with `default` for those that are not named (0.5 without it)."""
    verifier_retries: int = 2
    """How often a verifier that gave no verdict is asked again before its session is given up."""
    second_verifier: str | None = None
    """Another reward function, which judges every response too and changes nothing: cipo/hacking_gap measures how often
    only the run's own verifier accepts. Named pkg://package.module:function or path/to/file.py:function; without
    :function it is compute_score."""
    second_verifier_timeout: float = 120.0
    """Seconds after which the second verifier's verdict on a response is given up, further tries included; must be
    below correction_timeout, since a correction session waits for it."""
    correction_timeout: float = 3600.0
    """Seconds after which a correction session, or a further attempt of budget=auto, is given up, so that one cannot
    hold up the step; waiting for the engine counts, the time that it sleeps while verl trains (colocate_async) does
    not."""
    report_timeout: float = 3600.0
    """Seconds without news from any prompt of a dispatch after which anchors are drawn without the missing prompts, so
    that an attempt that hangs, in a tool for example, does not hold up the corrections of others."""
    guard: Literal["off", "warn", "adapt"] = "warn"
    """Watch for collapse (docs/guard.md): off; warn, in log and metrics; adapt, which also lowers lambda_corr during an
    alarm."""
    val_corrections: int = 1
    """Second-turn corrections per validation attempt; 0 turns them off."""
    budget: Literal["fixed", "auto"] = FOLLOWS
    """What the sessions of an anchor are spent on: fixed, its corrections; auto, those where the prompt has no right
    attempt and corrections have been right at least twice as often as further attempts; the others, as many further
    attempts, spread over the step's prompts; null = that of the preset."""
    keep_all_wrong: float = 0.0
    """With algorithm.filter_groups, the share of a batch's prompts that may be all wrong: each is kept with a wrong
    anchor of its own, as long as the step has any left; 0 evicts them, as verl does."""
    seed: int = 1
    """Seed for drawing anchors."""
    manager: str | None = None
    """Subclass of verl's AgentLoopManagerTQ that CIPO's manager is laid over, by its full name; null = verl's own, or
    what rollout.agent.agent_loop_manager_class names."""
    prompt: PromptConfig = field(default_factory=PromptConfig)
    """The correction prompt."""
    aux: AuxConfig = field(default_factory=AuxConfig)
    """The auxiliary correction loss."""
    transfer: TransferConfig = field(default_factory=TransferConfig)
    """What corrections find, trained on the plain prompt."""
    nudge: NudgeConfig = field(default_factory=NudgeConfig)
    """Strategy contexts for attempts."""
    path: InitVar[str] = ROOT

    def __post_init__(self, path: str) -> None:
        validate(self, path)
        self._follow()
        # A rho that does not adapt stays at rho_init, whatever the range.
        range_of_rho = ("rho_min", "rho_init", "rho_max") if self.rho_adaptive else ("rho_min", "rho_max")
        for names in (range_of_rho, ("delta_low", "delta_high")):
            values = [getattr(self, name) for name in names]
            if values != sorted(values):
                held = ", ".join(f"{path}.{name} = {value!r}" for name, value in zip(names, values, strict=True))
                raise CIPOConfigError(f"{held}: expected {' <= '.join(names)}")
        if self.second_verifier is not None and self.second_verifier_timeout >= self.correction_timeout:
            raise CIPOConfigError(
                f"{path}.second_verifier_timeout = {self.second_verifier_timeout!r} with {path}.correction_timeout = "
                f"{self.correction_timeout!r}: a second verifier that hangs would cost corrections; expected less"
            )
        if self.source == "paired" and self.aux.coef == 0:
            raise CIPOConfigError(
                f"{path}.source = 'paired' with {path}.aux.coef = 0: only the auxiliary loss trains pairs; "
                f"set {path}.aux.coef above 0"
            )
        if self.prompt.verdict == "told" and self.draws_right:
            raise CIPOConfigError(
                f"{path}.prompt.verdict = 'told' with {path}.rho_adaptive = {self.rho_adaptive!r} and {path}.rho_init "
                f"= {self.rho_init!r}: the prompt would call right anchors wrong; set {path}.rho_adaptive=false and "
                f"{path}.rho_init=0, or use 'hidden'"
            )
        if self.source == "paired" and self.transfer.kind != "none":
            raise CIPOConfigError(
                f"{path}.transfer.kind = {self.transfer.kind!r} with {path}.source = 'paired': no corrections are "
                f"sampled; use {path}.transfer.kind = 'none', or {path}.source = 'resample' or 'both'"
            )
        if self.transfer.own and self.transfer.kind == "none" and self.replay_fraction > 0:
            raise CIPOConfigError(
                f"{path}.transfer.own = True with {path}.transfer.kind = 'none': there is no term to train right "
                f"attempts by; set {path}.transfer.kind to 'inject' or 'regress', or {path}.transfer.own to false"
            )
        if self.nudge.corrections and not (self.nudges and self.rolls_out):
            key, value, allowed = ("nudge.contexts", None, "a column of the data")
            if self.nudges:
                key, value, allowed = self._without_corrections()
            raise CIPOConfigError(
                f"{path}.nudge.corrections = True with {path}.{key} = {value!r}: this takes contexts and sampled "
                f"corrections; set {path}.{key} to {allowed}, or {path}.nudge.corrections to false"
            )
        if self.moves_budget and not self.rolls_out:
            key, value, allowed = self._without_corrections()
            raise CIPOConfigError(
                f"{path}.budget = 'auto' with {path}.{key} = {value!r}: no corrections are sampled, so no sessions can "
                f"move; set {path}.{key} to {allowed}, or {path}.budget to 'fixed'"
            )

    def _without_corrections(self) -> tuple[str, Any, str]:
        """Why no corrections are sampled: the knob, its value, and what it would have to be."""
        if self.source == "paired":
            return "source", self.source, "'resample' or 'both'"
        return "replay_fraction", self.replay_fraction, "a value above 0"

    def _follow(self) -> None:
        """Give the knobs that are null a value, as their docs have it."""
        balanced = self.preset == "balanced" and self.replay_fraction > 0

        def put(name: str, value: Any) -> None:
            object.__setattr__(self, name, value)

        if self.source is None:
            put("source", "both" if balanced else "resample")
        samples = balanced and self.rolls_out
        if self.budget is None:
            put("budget", "auto" if samples else "fixed")
        if self.aux.coef is None:
            put("aux", replace(self.aux, coef=PAIRS_COEF if self.pairs else 0.0))
        if self.aux.by_signal is None:
            put("aux", replace(self.aux, by_signal=balanced))
        if self.transfer.kind is None:
            put("transfer", replace(self.transfer, kind="inject" if samples else "none"))
        if self.transfer.coef is None:
            put("transfer", replace(self.transfer, coef=TRANSFER_COEF[self.transfer.kind]))
        if self.prompt.standalone is None:
            put("prompt", replace(self.prompt, standalone=self.transfers and self.prompt.template in BUILT_IN))

    def scheduled(self, *, asynchronous: bool) -> "CIPOConfig":
        """This with schedule=auto resolved: replay for an `asynchronous` trainer, else streaming.

        `aux.kind` contrastive needs the wrong attempts in the batch, where replay does not have them: streaming too.
        """
        if self.schedule != "auto":
            return self
        return replace(self, schedule="replay" if asynchronous and not self.aux.contrastive else "streaming")

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, path: str = ROOT) -> "CIPOConfig":
        """Read plain (nested) dicts; a key that is left out keeps its default.

        Raises: CIPOConfigError on an unknown key (with the nearest known one), a wrong type or a value out of range.
        """
        values = _known_keys(cls, mapping, path)
        for name, section in SECTIONS.items():
            if name in values:
                inner = f"{path}.{name}"
                values[name] = section(**_known_keys(section, values[name], inner), path=inner)
        return cls(**values, path=path)

    @property
    def appends_rows(self) -> bool:
        """Whether rows are made that the policy loss does not train."""
        of_aux = self.pairs or self.aux.contrastive or self.lambda_corr == 0
        return self.transfers or self.distils or (self.aux.coef > 0 and of_aux)

    @property
    def transfers(self) -> bool:
        """Whether corrections are trained on the plain prompt."""
        return self.transfer.kind != "none" and self.transfer.coef > 0 and self.rolls_out

    @property
    def adds_loss(self) -> bool:
        """Whether something is added to verl's policy loss."""
        return self.aux.coef > 0 or self.transfers or self.distils

    @property
    def nudges(self) -> bool:
        """Whether attempts are made under strategy contexts."""
        return self.nudge.contexts is not None

    @property
    def distils(self) -> bool:
        """Whether these are distilled into the plain prompt."""
        return self.nudges and self.nudge.coef > 0

    def threshold(self, data_source: str | None) -> float:
        """`correct_threshold` for the rows of a data source."""
        if isinstance(self.correct_threshold, int | float):
            return self.correct_threshold
        return self.correct_threshold.get(str(data_source), self.correct_threshold.get("default", 0.5))

    @property
    def corrects(self) -> bool:
        """Whether correction prompts are made at all, in training or in validation."""
        return self.replay_fraction > 0 or self.val_corrections > 0

    @property
    def reports_validation(self) -> bool:
        """Whether attempts of the validation are reported to the trainer, with their second turns where there are."""
        return self.val_corrections > 0 or self.second_verifier is not None

    @property
    def rolls_out(self) -> bool:
        """Whether corrections are sampled from the policy."""
        return self.replay_fraction > 0 and self.source != "paired"

    @property
    def moves_budget(self) -> bool:
        """Whether sessions of corrections may become further attempts."""
        return self.budget == "auto"

    @property
    def draws_right(self) -> bool:
        """Whether a step may ask for right anchors, or pair right attempts."""
        pairs = self.pairs and not self.aux.contrastive and self.rho_init > 0
        return pairs or (self.rolls_out and (self.rho_init > 0 or (self.rho_adaptive and self.rho_max > 0)))

    @property
    def wrong_alone(self) -> bool:
        """Whether right attempts are never drawn as anchors, not even where wrong ones run short."""
        return self.prompt.verdict == "told"

    @property
    def replays(self) -> bool:
        """Whether anchors are drawn from the attempts of the previous step."""
        return self.rolls_out and self.schedule == "replay"

    @property
    def pairs(self) -> bool:
        """Whether wrong attempts are paired with right rollouts."""
        return self.replay_fraction > 0 and self.source != "resample"

    def to_mapping(self) -> dict[str, Any]:
        """The plain nested dict that `from_mapping` reads back to an equal config."""
        return asdict(self)


_REPLACED = {
    f"{ROOT}.aux.distill_below": f"corrections are trained on the plain prompt by {ROOT}.transfer.kind=regress (or "
    f"inject), for prompts with a pass rate of at most {ROOT}.transfer.below",
}
"""Knobs of older versions, and what does their work now."""


def _known_keys(cls: type, mapping: Any, path: str) -> dict[str, Any]:
    """A copy of `mapping`, all of whose keys are fields of `cls`."""
    allowed = [knob.name for knob in fields(cls)]
    if not isinstance(mapping, Mapping):
        raise CIPOConfigError(f"{path} = {mapping!r}: expected a mapping with the keys {', '.join(allowed)}")
    for key, value in mapping.items():
        if (now := _REPLACED.get(f"{path}.{key}")) is not None:
            raise CIPOConfigError(f"{path}.{key} = {value!r}: this option is gone; {now}")
        if key not in allowed:
            sections = SECTIONS.items() if cls is CIPOConfig else ()
            inner = [f"{name}.{knob.name}" for name, section in sections for knob in fields(section)]
            places = {name.rpartition(".")[2]: name for name in allowed + inner}
            near = difflib.get_close_matches(str(key), places, n=1)
            hint = f" Did you mean {path}.{places[near[0]]}?" if near else ""
            raise CIPOConfigError(f"{path}.{key} = {value!r}: unknown key.{hint} Expected one of {', '.join(allowed)}")
    return dict(mapping)
