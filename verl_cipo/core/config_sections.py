"""The sections of `algorithm.cipo`, each a dataclass: the knobs' defaults and meanings. config.py has the whole."""

from dataclasses import InitVar, dataclass, field, fields, replace
from typing import Any, Literal

from verl_cipo.core.knob_rules import NUDGE_TEMPLATE, rule_of

ROOT = "algorithm.cipo"
FOLLOWS: Any = None
"""Default of a knob that a CIPOConfig gives a value when it is made: that of the preset, or what other knobs need."""
BUILT_IN = ("math", "code")  # templates that know of prompt.standalone


class CIPOConfigError(ValueError):
    """A setting that cannot be used. The message names the key, its value and what is allowed."""


@dataclass(frozen=True)
class PromptConfig:
    """How a correction prompt is made from a question and an attempt (`algorithm.cipo.prompt`)."""

    template: str = "math"
    """Text of the correction prompt: math, code, the path of a file that holds {question} and {attempt} once each, or
    the text itself; with form=assistant_turn the review request, which holds neither."""
    attempt_view: Literal["whole", "no_thinking", "tail"] = "no_thinking"
    """Part of the attempt to show: whole; no_thinking, without <think> blocks; or tail, its end, max_attempt_tokens
    long or as long as fits."""
    on_overflow: Literal["tail", "skip"] = "tail"
    """When that part does not fit: tail shows its end, skip drops the anchor (counted in the metrics)."""
    max_attempt_tokens: int | None = None
    """Most tokens of the attempt to show; null = as many as rollout.prompt_length leaves."""
    thinking_open: str = "<think>"
    """Start of a thought, for attempt_view=no_thinking; may hold special tokens of the model."""
    thinking_close: str = "</think>"
    """End of a thought, for the same."""
    attempts: int = 1
    """Most attempts to show: the anchor and other wrong attempts at its prompt, distinct answers first, in the order of
    a lot. The room is shared fairly. A second turn in validation shows its attempt alone."""
    verdict: Literal["hidden", "told"] = "hidden"
    """hidden, the text does not say whether the attempt is right; told, it says that it is wrong, which takes anchors
    that are all wrong: rho_adaptive=false rho_init=0. In validation it stays hidden."""
    form: Literal["message", "assistant_turn"] = "message"
    """message, question, attempt and request in one message; assistant_turn, the attempt follows the question as the
    assistant's own answer, and then a request to review it."""
    standalone: bool = FOLLOWS
    """Whether the built-in texts ask for an answer that stands on its own and does not mention the attempt; null = with
    transfer, which trains it as the answer to the plain prompt, if the template is one of them."""
    path: InitVar[str] = f"{ROOT}.prompt"

    def __post_init__(self, path: str) -> None:
        validate(self, path)
        if self.thinking_open == self.thinking_close:
            raise CIPOConfigError(
                f"{path}.thinking_open = {path}.thinking_close = {self.thinking_open!r}: they must differ"
            )
        if self.attempts > 1 and self.form == "assistant_turn":
            raise CIPOConfigError(
                f"{path}.attempts = {self.attempts} with {path}.form = 'assistant_turn': the assistant's own turn is "
                f"one attempt; use {path}.attempts = 1 or {path}.form = 'message'"
            )

    @property
    def in_validation(self) -> "PromptConfig":
        """What a second turn in validation is asked with: which attempts are wrong is not known there."""
        return replace(self, attempts=1, verdict="hidden")


@dataclass(frozen=True)
class AuxConfig:
    """The auxiliary correction loss (`algorithm.cipo.aux`), added to verl's policy loss; coef 0 leaves it out."""

    kind: Literal["nll", "contrastive"] = "nll"
    """nll, log-likelihood of right corrections; contrastive, right corrections preferred over the wrong attempt."""
    coef: float = FOLLOWS
    """Weight of the auxiliary loss; 0 = off. Pairs are trained by it alone: null = 0.1 with them, else 0."""
    by_signal: bool = FOLLOWS
    """Whether it counts by the share of the step's prompts whose attempts differ in score, as the policy loss does,
    which learns from these alone; null = that of the preset."""
    beta: float = 2.0
    """Scale of the contrastive margin between mean log-probabilities per token."""
    path: InitVar[str] = f"{ROOT}.aux"

    def __post_init__(self, path: str) -> None:
        validate(self, path)

    @property
    def contrastive(self) -> bool:
        """Whether corrections are preferred over wrong attempts, which must then be in the batch."""
        return self.coef > 0 and self.kind == "contrastive"


@dataclass(frozen=True)
class TransferConfig:
    """What corrections find, trained on the plain prompt (`algorithm.cipo.transfer`); added to verl's policy loss."""

    kind: Literal["none", "inject", "regress"] = FOLLOWS
    """none; inject, one right correction of a prompt as one more row of its attempts' group; regress, the
    log-probability of all corrections of wrong attempts, right and wrong, by their advantage over the attempts; null =
    that of the preset."""
    coef: float = FOLLOWS
    """Weight of the term, 0 = off; null = 8 for inject and 2 for regress."""
    below: float = 0.125
    """Highest pass rate of the prompts whose corrections are trained so, inclusive."""
    own: bool = False
    """Whether right attempts at such prompts are trained by the term, too, each in its own row; takes a kind that is
    not none."""
    gamma: float = 0.1
    """Shaping of inject: a token of probability p counts p / (p + gamma)."""
    floor: float | None = -5.0
    """For regress: tokens whose log-probability under the plain prompt is below this are left out; null = none are."""
    path: InitVar[str] = f"{ROOT}.transfer"

    def __post_init__(self, path: str) -> None:
        validate(self, path)


@dataclass(frozen=True)
class NudgeConfig:
    """Strategy contexts (`algorithm.cipo.nudge`) for attempts, whose answers are distilled into the plain prompt, and
    for corrections."""

    contexts: str | None = None
    """Column of the training data, at the top level or in extra_info, that holds a list of texts for each row: hints,
    each a way to go about the question; null = none. The attempts of a prompt are spread evenly over its list. A row
    without one has plain attempts alone."""
    template: str = field(default="{question}\n\nUse this strategy: {context}", metadata={"rule": NUDGE_TEMPLATE})
    """How the last message of the user shows a context."""
    plain_share: float = 0.5
    """Probability of an attempt, or a correction, to be made at the plain prompt, and not under its context."""
    between: float = 1.1
    """Weight, in the advantage of an attempt, of how much better its context does than all attempts of the prompt,
    against how much better it does than others under its context; likewise among the corrections of an anchor."""
    corrections: bool = False
    """Whether the corrections of an anchor are spread over the contexts of its prompt as well. The question that a
    correction prompt holds then has the context, as that of an attempt does."""
    coef: float = 0.1
    """Weight of the distillation, which makes all attempts of a prompt likelier or less likely at the plain prompt, by
    their advantage; added to verl's policy loss; 0 = off."""
    path: InitVar[str] = f"{ROOT}.nudge"

    def __post_init__(self, path: str) -> None:
        validate(self, path)


SECTIONS: dict[str, Any] = {
    "prompt": PromptConfig,
    "aux": AuxConfig,
    "transfer": TransferConfig,
    "nudge": NudgeConfig,
}
"""Name below `algorithm.cipo` -> its dataclass."""


def validate(config: Any, path: str) -> None:
    """Check every field of a section, or of the whole, against its rule; an int in a float field becomes a float.

    Raises: CIPOConfigError on a value that the rule does not allow.
    """
    for knob in fields(config):
        value = getattr(config, knob.name)
        if (section := SECTIONS.get(knob.name)) is not None:
            if not isinstance(value, section):
                allowed = f"expected a mapping (a {section.__name__} in code)"
                raise CIPOConfigError(f"{path}.{knob.name} = {value!r}: {allowed}")
            continue
        rule = rule_of(knob)
        try:
            value = rule.read(value)
        except ValueError:
            raise CIPOConfigError(f"{path}.{knob.name} = {value!r}: expected {rule.allowed}") from None
        object.__setattr__(config, knob.name, value)
