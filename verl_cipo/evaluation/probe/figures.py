"""The figures of a probe, from what the two turns wrote (evaluation/suite/generate.py)."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verl_cipo.core.anchors import anchor_budget, quotas
from verl_cipo.evaluation.corrections import correction_figures
from verl_cipo.evaluation.intervals import Interval, interval, ratio_interval
from verl_cipo.evaluation.probe.advice import DEFAULTS, Probed, Step

_Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Mean tokens of a row, prompt and answer. correction: of a corrections' row, by whether its anchor is right."""

    attempt: tuple[float, float]
    correction: Mapping[bool, tuple[float, float]]

    def of_step(self, step: Step, rho: float) -> dict[str, dict[str, float]]:
        """What a step samples and what it trains, in tokens, under GRPO and under CIPO with the default fractions.

        rho: share of right anchors. A kind of anchor that was not measured counts as the other one.
        """
        grpo, each = step.prompts * step.n, DEFAULTS.n_corrections or step.n
        kinds = quotas(anchor_budget(step.prompts, DEFAULTS.replay_fraction), rho)
        cipo, prompts, answers = 0, 0.0, 0.0
        for right, count in kinds.items():
            prompt, answer = self.correction.get(right) or self.correction.get(not right) or (0.0, 0.0)
            cipo, prompts, answers = (
                cipo + count * each,
                prompts + count * each * prompt,
                answers + count * each * answer,
            )
        sampled, trained = grpo * self.attempt[1], grpo * sum(self.attempt)
        return {
            "grpo": {"rollouts": grpo, "sampled": sampled, "trained": trained},
            "cipo": {
                "rollouts": grpo + cipo,
                "sampled": sampled + answers,
                "trained": trained + prompts + answers,
            },
        }


def probed(
    attempts: Sequence[_Row],
    records: Sequence[_Row],
    *,
    n: int,
    max_tokens: int,
    prompts: Sequence[int],
    corrections: Sequence[int],
    most_tokens: int | None,
) -> tuple[Probed, dict[str, Interval]]:
    """What the rules look at, and all figures of the second turn (`evaluation.corrections.FIGURES`).

    Args:
        attempts: rows of the dump, with uid, acc and response_tokens; n of a prompt.
        records: of each attempt its corrections.
        prompts, corrections, most_tokens: see `Probed`.
    """
    groups: dict[str, list[_Row]] = defaultdict(list)
    for row in attempts:
        groups[row["uid"].split("_")[0]].append(row)
    right = np.array([sum(row["acc"] for row in own) for own in groups.values()])
    lengths = [[row["response_tokens"] for row in own] for own in groups.values()]
    below = DEFAULTS.transfer.below
    mostly_fail = {prompt for prompt, own in groups.items() if sum(row["acc"] for row in own) <= below * n}
    second = correction_figures(records)
    found = Probed(
        n=n,
        max_tokens=max_tokens,
        pass_at_1=interval(right / n),
        all_right=interval((right == n).astype(float)),
        all_wrong=interval((right == 0).astype(float)),
        hard=interval([float(prompt in mostly_fail) for prompt in groups]),
        **{name: second.get(name) for name in ("w2c", "retry", "w2c_over_retry", "c2c")},
        hard_w2c=_w2c([record for record in records if record["uid"] in mostly_fail]),
        prompts=prompts,
        corrections=corrections,
        longest_over_mean=float(np.mean([max(own) / max(1.0, float(np.mean(own))) for own in lengths])),
        most_tokens=most_tokens,
    )
    return found, second


def tokens(
    attempts: Sequence[_Row], records: Sequence[_Row], *, prompts: Sequence[int], corrections: Mapping[str, int]
) -> Tokens:
    """Mean tokens of the rows of a step.

    Args:
        prompts: tokens of each plain prompt.
        corrections: of each attempt that can be shown, by uid and session, tokens of its correction prompt.
    """
    rows: dict[bool, list[tuple[float, float]]] = defaultdict(list)
    for record in records:
        asked = corrections.get(f"{record['uid']}_{record['session']}")
        if asked is not None:
            rows[record["anchor_correct"]] += [(asked, turn["response_tokens"]) for turn in record["corrections"]]
    return Tokens(
        attempt=(float(np.mean(prompts)), float(np.mean([row["response_tokens"] for row in attempts]))),
        correction={
            right: (float(np.mean([prompt for prompt, _ in own])), float(np.mean([answer for _, answer in own])))
            for right, own in rows.items()
            if own
        },
    )


def _w2c(records: Sequence[_Row]) -> Interval | None:
    """Share of right corrections of wrong attempts, over problems; None without one."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for record in records:
        if not record["anchor_correct"]:
            counts[record["uid"]][0] += sum(turn["correct"] for turn in record["corrections"])
            counts[record["uid"]][1] += len(record["corrections"])
    parts, totals = np.array(list(counts.values()), dtype=float).reshape(-1, 2).T
    return ratio_interval(parts, totals) if totals.any() else None


def correction_tokens(
    attempts: Sequence[_Row],
    messages: Mapping[str, list[dict]],
    *,
    request: Callable[[list[dict], str], list[dict] | None],
    count: Callable[[list[dict]], int],
) -> dict[str, int]:
    """Of each attempt that can be shown, `{uid}_{session}` -> tokens of the correction prompt that shows it whole.

    Args:
        messages: chat of each prompt, by its uid.
        request: the correction's chat for a chat and an attempt, None where there is none.
        count: tokens of a chat.
    """
    found = {}
    for row in attempts:
        uid, session = row["uid"].split("_")[:2]
        chat = request(messages[uid], row["output"])
        if chat is not None:
            found[f"{uid}_{session}"] = count(chat)
    return found
