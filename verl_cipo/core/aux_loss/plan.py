"""Which rows are trained beside the policy loss, and which are appended for it: one plan for both data planes.

docs/method.md 13, 14, 15 and 17. The auxiliary loss trains two kinds:

* Corrections of wrong attempts that were rolled out and are right; with `aux.kind` contrastive the first of each
  attempt, and an appended row that has the attempt as its response to the same prompt. A correction that the policy
  loss does not train is not in the batch and is appended, too.
* With `source` paired or both, pairs: each wrong attempt is given a right rollout of the same step as its correction,
  of the same prompt, else of the nearest prompt that has one, whose solution is then learnt beside the wrong attempt
  as a worked example. The share `rho_init` of the pairs show a right attempt, so that what is right is kept. Nothing is
  generated. Appended is the right rollout under the prompt of the pair, and with contrastive, which has pairs of wrong
  attempts alone, the wrong attempt under the same prompt.

Transfer trains corrections of prompts that mostly fail as responses to the plain question (transfer.py), and nudging
attempts under strategy contexts (distill.py). A row of that is appended for each.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from verl_cipo.core.anchors import Group
from verl_cipo.core.aux_loss.distill import COUNTED as NUDGE_COUNTED
from verl_cipo.core.aux_loss.distill import NUDGE_WEIGHTS, Distilled, distilled_attempts
from verl_cipo.core.aux_loss.losses import PAIR, PARTNER, SIGN, WEIGHTS, aux_weights
from verl_cipo.core.aux_loss.pairs import SKIPPED, Pair, draw_pairs
from verl_cipo.core.aux_loss.transfer import (
    ROUNDING,
    TRANSFER_WEIGHTS,
    Moved,
    moved_corrections,
    rare_attempts,
    transfer_weights,
)
from verl_cipo.core.aux_loss.transfer import SKIP_REASONS as TRANSFER_REASONS
from verl_cipo.core.aux_loss.transfer import SKIPPED as TRANSFER_SKIPPED
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.contents import media_of, with_media
from verl_cipo.core.keys import GroupName, RowKey, follows_outputs
from verl_cipo.core.nudge import SKIPPED as NUDGE_SKIPPED
from verl_cipo.core.prompts import SKIP_REASONS, CorrectionPrompt
from verl_cipo.core.rows import CHOSEN, REJECTED, UNTRAINED, RowTable

_NO_TEXT = f"{SKIPPED}no_text_question"
_SEVERAL = f"{SKIPPED}several_outputs"
COUNTED = (
    "aux/rows",
    "aux/pairs",
    "aux/adjacent",
    *(
        f"{SKIPPED}{reason}"
        for reason in ("no_donor", "other_question", "unknown_tools", "several_outputs", *SKIP_REASONS)
    ),
    "rows/aux",
)
"""Counts of the auxiliary loss that are logged every step, also where nothing happened."""
TRANSFER_COUNTED = (
    "transfer/rows",
    "transfer/own",
    "transfer/prompts",
    *(f"{TRANSFER_SKIPPED}{reason}" for reason in TRANSFER_REASONS),
)
"""Likewise, of transfer."""

Tools = Sequence[dict]
"""Schemas of tools, as a chat template takes them."""
Offered = Callable[[str], Tools | None]
"""Key of a row -> the tools that its prompt offers, None where that cannot be told."""


def no_tools(key: str) -> Tools:
    """:data:`Offered`, of a run without tools."""
    return ()


class Encode(Protocol):
    """Tokens of a chat that offers these tools, with the generation prompt."""

    def __call__(self, messages: list[dict], tools: Tools = (), /) -> list[int]: ...


class Shown(NamedTuple):
    """What the plan looks at in a row of the batch.

    messages: the chat of its prompt; bound: whether what the model sees of its images, video and audio cannot be given
    to another row.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    messages: list[dict]
    bound: bool


@dataclass(frozen=True, kw_only=True)
class NewRow:
    """A row to append: the response of row `source` and all that belongs to it, under another prompt."""

    key: RowKey
    source: str
    messages: list[dict]
    prompt_ids: list[int]
    media: tuple[str, ...] = ()
    """Rows whose images, video and audio are those of its prompt, together and in this order."""
    sign: float = UNTRAINED
    """What the auxiliary loss does to it."""
    pair: int = -1
    """Its number; -1 where the row is in none."""
    weight: float = 0.0
    """What it counts for in transfer, `transfer.Moved`."""
    distilled: float = 0.0
    """What it counts for in the distillation, `distill.Distilled`."""


@dataclass(frozen=True)
class AuxPlan:
    """What is trained of a batch beside the policy loss; rows by key."""

    share: float = 1.0
    """What the auxiliary loss counts for, see `signal_share`."""
    chosen: dict[str, int] = field(default_factory=dict)
    """Rows of the batch that are made likelier where they are -> number of the pair."""
    own: dict[str, float] = field(default_factory=dict)
    """Rows of the batch that transfer trains where they are -> what each counts for."""
    distilled: dict[str, float] = field(default_factory=dict)
    """Likewise, of the distillation."""
    rows: list[NewRow] = field(default_factory=list)
    """To append."""
    counts: Counter = field(default_factory=Counter)
    """Of COUNTED, TRANSFER_COUNTED and distill.COUNTED, but what follows from the rows."""

    @property
    def trained(self) -> set[str]:
        """Keys of all rows that are trained beside the policy loss."""
        return {*self.chosen, *self.own, *self.distilled, *(str(row.key) for row in self.rows)}

    def signs(self, keys: Sequence[str], *, without: Collection[str] = ()) -> tuple[list[float], list[int]]:
        """Sign and pair of each row; without those rows that have lost all their tokens, nor their partners."""
        trained = {key: (CHOSEN, pair) for key, pair in self.chosen.items()}
        trained |= {str(row.key): (row.sign, row.pair) for row in self.rows}
        broken = {trained[key][1] for key in without if key in trained} - {-1}
        kept = {key: one for key, one in trained.items() if key not in without and one[1] not in broken}
        found = [kept.get(key, (UNTRAINED, -1)) for key in keys]
        return [sign for sign, _ in found], [pair for _, pair in found]

    def drop(self, keys: Collection[str]) -> None:
        """Forget rows of the batch that have lost all their tokens, so that they do not count as trained."""
        for key in keys:
            for rows in (self.chosen, self.own, self.distilled):
                rows.pop(key, None)

    def transfer_weights(self, keys: Sequence[str]) -> list[float]:
        """What each row counts for in transfer."""
        weights = self.own | {str(row.key): row.weight for row in self.rows}
        return [weights.get(key, 0.0) for key in keys]

    def nudge_weights(self, keys: Sequence[str]) -> list[float]:
        """What each row counts for in the distillation."""
        weights = self.distilled | {str(row.key): row.distilled for row in self.rows}
        return [weights.get(key, 0.0) for key in keys]

    def fields(
        self,
        keys: Sequence[str],
        token_mask: Tensor,
        *,
        config: CIPOConfig,
        optimizer_steps: int,
        without: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """What the losses take of the rows `keys`: weights, signs and pairs of what is on.

        token_mask: (K, T), nonzero where the policy wrote the token; without: as of `signs`.
        Returns the weights (K, T), the others (K,); PARTNER is 0, `losses.partner_scores` gives it.
        """
        made = {}
        if config.aux.coef > 0:
            sign, pair = self.signs(keys, without=without)
            made |= {SIGN: torch.tensor(sign), PAIR: torch.tensor(pair, dtype=torch.int64)}
            made[WEIGHTS] = aux_weights(token_mask, made[SIGN], optimizer_steps=optimizer_steps, share=self.share)
            made[PARTNER] = torch.zeros(len(keys))
        if config.transfers:
            moved = torch.tensor(self.transfer_weights(keys))
            made[TRANSFER_WEIGHTS] = transfer_weights(token_mask, moved, optimizer_steps=optimizer_steps)
        if config.distils:
            distilled = torch.tensor(self.nudge_weights(keys))
            made[NUDGE_WEIGHTS] = transfer_weights(token_mask, distilled, optimizer_steps=optimizer_steps)
        return made


def plan_metrics(plans: Sequence[AuxPlan], config: CIPOConfig) -> dict[str, float]:
    """Counts under cipo/ over the updates of a step, of what is on."""
    logged = (
        *(COUNTED if config.aux.coef > 0 else ()),
        *(TRANSFER_COUNTED if config.transfers else ()),
        *(NUDGE_COUNTED if config.distils else ()),
    )
    measured = {}
    if config.aux.coef > 0 and plans:
        measured["cipo/aux/share"] = sum(plan.share for plan in plans) / len(plans)
    counts: Counter = Counter()
    for plan in plans:
        counts.update(plan.counts)
        moved = sum(row.weight != 0 for row in plan.rows)
        distilled = sum(row.distilled != 0 for row in plan.rows)
        counts["aux/rows"] += len(plan.chosen) + sum(row.sign == CHOSEN for row in plan.rows)
        counts["rows/aux"] += len(plan.rows) - moved - distilled
        counts["transfer/rows"] += moved
        counts["transfer/own"] += len(plan.own)
        counts["nudge/rows"] += distilled
    return measured | {f"cipo/{name}": float(counts[name]) for name in logged}


def signal_share(groups: Sequence[Group]) -> float:
    """Share of the prompts whose attempts differ in score, from which GRPO learns; 0 without prompts.

    The policy loss is a mean over all tokens, so the fewer such prompts a step has, the less it weighs.
    """
    ends = [(min(scores), max(scores)) for group in groups if (scores := [a.score for a in group.attempts])]
    differ = [high - low > ROUNDING * max(abs(low), abs(high), 1.0) for low, high in ends]
    return sum(differ) / max(len(differ), 1)


def plan_aux(
    table: RowTable,
    shown: Callable[[Sequence[str]], Mapping[str, Shown]],
    *,
    config: CIPOConfig,
    prompt: CorrectionPrompt,
    encode: Encode,
    offered: Offered = no_tools,
    step: int,
    in_stream: bool = True,
    trained: np.ndarray | None = None,
    norm_by_std: bool = True,
) -> AuxPlan:
    """Choose what is trained beside the policy loss.

    table: the rows of the batch; shown: reads rows by key, called at most once, with all
    whose prompt or response is taken; step: the training step, with `config.seed` it decides the draws;
    in_stream: whether corrections are trained by the policy loss, too, and so are in the batch;
    trained: (N,) bool, rows with a token to train, the others are left out; None where all count, since rollout
    correction has not rejected any yet;
    norm_by_std: whether the run's advantages are divided by the std of their group.
    """
    usable = set(table.keys if trained is None else np.array(table.keys, dtype=object)[trained])
    contrastive = config.aux.contrastive
    groups, key_of = table.attempts() if config.aux.coef > 0 else ([], {})
    plan = AuxPlan(share=signal_share(groups)) if config.aux.coef > 0 and config.aux.by_signal else AuxPlan()
    corrections: Mapping[str, str | None] = {}
    moved: list[Moved] = []
    distilled: list[Distilled] = []
    pairs: list[Pair] = []
    if config.transfers:
        moved = moved_corrections(table, plan.counts, config=config, step=step, norm_by_std=norm_by_std, usable=usable)
        if config.transfer.own:
            plan.own.update(rare_attempts(table, plan.counts, config=config, norm_by_std=norm_by_std, usable=usable))
    if config.distils:
        how = {"config": config, "norm_by_std": norm_by_std, "usable": usable}
        in_place, distilled = distilled_attempts(table, plan.counts, **how)
        plan.distilled.update(in_place)
    if config.rolls_out and config.aux.coef > 0:
        right = table.preferences() if contrastive else dict.fromkeys(table.right_corrections())
        corrections = {
            key: wrong for key, wrong in right.items() if key in usable and (wrong is None or wrong in usable)
        }
    if config.pairs and config.aux.coef > 0:
        kept = [Group(group.uid, tuple(a for a in group.attempts if key_of[a] in usable)) for group in groups]
        pairs = draw_pairs([group for group in kept if group.attempts], plan.counts, config=config, step=step)

    read = [key for one in (*moved, *distilled) for key in (one.key, one.asked) if key is not None]
    if contrastive or not in_stream:
        read += [key for item in corrections.items() for key in item if key is not None]
    keyed = [(pair, key_of[pair.anchor], key_of[pair.donor]) for pair in pairs]
    read += [key for _, *both in keyed for key in both]
    rows = dict(shown(list(dict.fromkeys(read)))) if read else {}
    # What follows asks these rows for their question: the context in it was one attempt's.
    rows |= {key: rows[key]._replace(messages=chat) for key, chat in table.plain_questions().items() if key in rows}

    if contrastive or not in_stream:
        _append_corrections(plan, corrections, rows, in_stream=in_stream)
    else:
        plan.chosen.update({key: number for number, key in enumerate(corrections)})
    _append_moved(plan, moved, rows, encode=encode, offered=offered)
    _append_distilled(plan, distilled, rows, encode=encode, offered=offered)
    # Numbered after the corrections.
    _append_pairs(
        plan,
        keyed,
        rows,
        prompt=prompt,
        encode=encode,
        offered=offered,
        contrastive=contrastive,
        first=len(table.keys),
    )
    return plan


def _append_corrections(
    plan: AuxPlan, corrections: Mapping[str, str | None], rows: Mapping[str, Shown], *, in_stream: bool
) -> None:
    """Right corrections, each with the wrong attempt where the loss compares the two."""
    for number, (key, wrong) in enumerate(corrections.items()):
        asked = rows[key]
        if asked.bound:
            plan.counts[_NO_TEXT] += 1
            continue
        if wrong is not None and any(map(follows_outputs, (key, wrong))):
            plan.counts[_SEVERAL] += 1
            continue
        if in_stream:
            plan.chosen[key] = number
        else:
            plan.rows.append(_of_correction(key, "a", number, source=key, asked=asked, sign=CHOSEN, pair=number))
        if wrong is not None:
            plan.rows.append(_of_correction(key, "r", number, source=wrong, asked=asked, sign=REJECTED, pair=number))


def _append_moved(
    plan: AuxPlan, moved: Sequence[Moved], rows: Mapping[str, Shown], *, encode: Encode, offered: Offered
) -> None:
    """Corrections as responses to the plain question."""
    prompts = set()
    for one in moved:
        asked = None if one.asked is None else rows[one.asked]
        # The media of a correction's prompt are those of the plain one.
        shown = rows[one.key] if asked is None else asked
        messages = with_media(one.question, media_of(shown.messages)) if asked is None else asked.messages
        if messages is None or rows[one.key].bound or shown.bound:
            plan.counts[f"{TRANSFER_SKIPPED}no_text_question"] += 1
            continue
        tools = offered(one.key) if asked is None else ()
        if tools is None:
            plan.counts[f"{TRANSFER_SKIPPED}unknown_tools"] += 1
            continue
        key = RowKey.parse(one.key)
        plan.rows.append(
            NewRow(
                key=RowKey(str(GroupName.parse(key.group)._replace(use="q")), key.session),
                source=one.key,
                messages=messages,
                prompt_ids=encode(messages, tools) if asked is None else asked.prompt_ids,
                media=(one.key if one.asked is None else one.asked,),
                weight=one.weight,
            )
        )
        prompts.add(one.prompt)
    plan.counts["transfer/prompts"] += len(prompts)


def _append_distilled(
    plan: AuxPlan,
    distilled: Sequence[Distilled],
    rows: Mapping[str, Shown],
    *,
    encode: Encode,
    offered: Offered,
) -> None:
    """Attempts under contexts as responses to the plain question."""
    for one in distilled:
        asked = None if one.asked is None else rows[one.asked]
        tools = offered(one.key) if asked is None else ()
        if tools is None:
            plan.counts[f"{NUDGE_SKIPPED}unknown_tools"] += 1
            continue
        key = RowKey.parse(one.key)
        plan.rows.append(
            NewRow(
                key=RowKey(str(GroupName(key.group, "n", key.session)), 0),
                source=one.key,
                messages=one.question if asked is None else asked.messages,
                prompt_ids=encode(one.question, tools) if asked is None else asked.prompt_ids,
                distilled=one.weight,
            )
        )


def _append_pairs(
    plan: AuxPlan,
    pairs: Sequence[tuple[Pair, str, str]],
    rows: Mapping[str, Shown],
    *,
    prompt: CorrectionPrompt,
    encode: Encode,
    offered: Offered,
    contrastive: bool,
    first: int,
) -> None:
    """Right rollouts under the prompts of pairs, given as (pair, key of its attempt, key of its right rollout).

    first: the number of the first pair.
    """
    for number, (pair, attempt, right) in enumerate(pairs, first):
        if any(map(follows_outputs, (right, attempt) if contrastive else (right,))):
            plan.counts[_SEVERAL] += 1
            continue
        media = (right,) if pair.same_prompt else (right, attempt)
        messages, reason = _pair_prompt(prompt, pair, attempt=rows[attempt], right=rows[right])
        if messages is not None and not _shows(messages, [rows[key] for key in media]):
            messages, reason = None, "no_text_question"
        tools = offered(right) if messages is not None else ()
        if tools is None:
            messages, reason = None, "unknown_tools"
        if messages is None:
            plan.counts[f"{SKIPPED}{reason}"] += 1
            continue
        plan.counts["aux/pairs"] += 1
        plan.counts["aux/adjacent"] += not pair.same_prompt
        group = str(GroupName(pair.anchor.uid, "p", pair.anchor.session))
        prompt_ids = encode(messages, tools or ())
        shared = {"messages": messages, "prompt_ids": prompt_ids, "media": media, "pair": number}
        plan.rows.append(NewRow(key=RowKey(group, 0), source=right, sign=CHOSEN, **shared))
        if contrastive:
            plan.rows.append(NewRow(key=RowKey(group, 1), source=attempt, sign=REJECTED, **shared))


def _of_correction(key: str, use: str, number: int, *, source: str, asked: Shown, sign: float, pair: int) -> NewRow:
    """The response of `source` to what was asked, named after the correction `key`."""
    group = GroupName.parse(RowKey.parse(key).group)._replace(use=use)
    return NewRow(
        key=RowKey(str(group), number),
        source=source,
        messages=asked.messages,
        prompt_ids=asked.prompt_ids,
        media=(key,),
        sign=sign,
        pair=pair,
    )


def _pair_prompt(
    prompt: CorrectionPrompt, pair: Pair, *, attempt: Shown, right: Shown
) -> tuple[list[dict] | None, str | None]:
    """The chat of a pair's rows, or the reason why there is none, as `CorrectionPrompt.build` returns them.

    For a pair of one prompt that is the correction prompt; for one of two prompts the right rollout's question, with
    the wrong attempt at its own as a worked example.
    """
    if attempt.bound or right.bound:
        return None, _NO_TEXT.removeprefix(SKIPPED)
    text = prompt.decode(attempt.response_ids)
    if pair.same_prompt:
        return prompt.build(right.messages, text)
    return prompt.build_adjacent(right.messages, text, attempted=attempt.messages)


def _shows(messages: list[dict], rows: Sequence[Shown]) -> bool:
    """Whether the media of a chat are those of the rows' prompts, as far as their types tell."""
    expected = [part["type"] for row in rows for part in media_of(row.messages)]
    return [part["type"] for part in media_of(messages)] == expected
