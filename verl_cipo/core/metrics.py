"""The metrics under cipo/: what each name means, and those that follow from the rows of a batch."""

from collections.abc import Iterable

import numpy as np

from verl_cipo.core.rows import BASE, CORRECTION, PADDING, PLAIN, RowTable
from verl_cipo.core.transitions import Transitions

PREFIX = "cipo/"
VALIDATION = "cipo/val/"
_STREAMS = {"base": BASE, "correction": CORRECTION}
_GAP = {"base": "hacking_gap", "correction": "hacking_gap_corrections"}


METRICS: dict[str, str] = {
    "cipo/rho": "Target share of right attempts among this step's anchors.",
    "cipo/lambda": "Weight of the correction stream in the next step; guard=adapt lowers it during an alarm.",
    "cipo/hacking_gap": "Share of attempts right under the run's verifier minus that under second_verifier; attempts "
    "without a verdict of the second one are left out of both, and so are the further ones of budget=auto.",
    "cipo/hacking_gap_corrections": "The same of the corrections.",
    "cipo/retention": "Share of corrections of right anchors that are right; rho follows it.",
    "cipo/anchors/total": "Anchors drawn.",
    "cipo/anchors/correct": "Anchors whose attempt was right.",
    "cipo/anchors/failed": "Anchors whose attempt was wrong.",
    "cipo/anchors/medium": "Anchors of prompts of medium difficulty.",
    "cipo/anchors/other": "Anchors of other prompts: drawn when those run out, and with budget=auto as early, or "
    "earlier, where no attempt is right.",
    "cipo/anchors/unreported": "Prompts left out of the draw because report_timeout had passed.",
    "cipo/anchors/skipped/too_long": "Attempts that could not be anchors: the correction prompt would not fit into "
    "rollout.prompt_length.",
    "cipo/anchors/skipped/no_text_question": "Attempts that could not be anchors: no user message with text or parts.",
    "cipo/anchors/skipped/empty_attempt": "Attempts that could not be anchors: the part to show is empty.",
    "cipo/anchors/skipped/prompt_failed": "Attempts that could not be anchors: building the correction prompt raised.",
    "cipo/attempts/failed_sessions": "Attempts that raised, those given up included: their rows are missing. With "
    "val_corrections=0 and no second_verifier, this and cipo/verifier/* also count the validation.",
    "cipo/corrections/failed_sessions": "Correction sessions that raised or returned nothing.",
    "cipo/corrections/timed_out": "Those among them that took longer than correction_timeout.",
    "cipo/corrections/not_asked": "Corrections that are plain attempts: their agent loop ignores raw_prompt.",
    "cipo/verifier/errors": "Calls without a verdict; the verifier is asked again up to verifier_retries times.",
    "cipo/verifier/given_up": "Sessions still without a verdict after that: their rows are missing, not scored 0.",
    "cipo/verifier/undecided": "Sessions that the verifier could not decide (outcome undecided); they count by the "
    "score that it gave, which is 0 with `verl_cipo.rewards.math`.",
    "cipo/budget/slots": "Slots of n_corrections sessions each, one an anchor; cipo/budget/* exist with budget=auto.",
    "cipo/budget/corrected": "Slots whose sessions correct their anchor; the others are further attempts.",
    "cipo/budget/correction_share": "Share of the step's slots whose sessions correct.",
    "cipo/budget/corrections": "Corrections that came in.",
    "cipo/budget/attempts": "Further attempts that came in; they are rows of attempts, too.",
    "cipo/budget/accuracy": "Share of further attempts that are right.",
    "cipo/budget/none/slots": "Slots of wrong anchors of prompts without a right attempt.",
    "cipo/budget/none/share": "Share of these that was to be corrections.",
    "cipo/budget/none/w2c": "Share of right corrections of such anchors; the last steps count most.",
    "cipo/budget/none/retry": "Share of right ones that further attempts at such prompts would have had; the last "
    "steps count most. Both are left out while next to nothing was measured.",
    "cipo/budget/some/slots": "Slots of wrong anchors of prompts with a right attempt.",
    "cipo/budget/right/slots": "Slots of right anchors.",
    "cipo/budget/right/share": "Share of these that was to be corrections.",
    "cipo/second_verifier/errors": "Sessions without a verdict of the second verifier: it raised, was undecided or "
    "took longer than second_verifier_timeout. The gap leaves them out; nothing else changes.",
    "cipo/guard/copying": "1 while w->c is down and c->c is up: the policy may be learning to copy.",
    "cipo/guard/copy_rate": "1 while nearly all corrections repeat their attempt.",
    "cipo/guard/entropy": "1 while entropy is a fraction of what it was at the start.",
    "cipo/guard/accuracy": "1 while the accuracy of the attempts is below its best.",
    "cipo/transitions/c2c": "Share of the corrections of right attempts that are right.",
    "cipo/transitions/c2w": "Share of the corrections of right attempts that are wrong.",
    "cipo/transitions/w2c": "Share of the corrections of wrong attempts that are right.",
    "cipo/transitions/w2w": "Share of the corrections of wrong attempts that are wrong.",
    "cipo/copy_rate": "Share of corrections that repeat the shown part of the attempt, ignoring white space.",
    "cipo/copy_rate_failed": "The same for corrections of wrong attempts only; copying a right one is fine.",
    "cipo/reward/base": "Mean raw verifier score of the attempts, without the further ones of budget=auto.",
    "cipo/reward/correction": "Mean raw verifier score of the corrections, before risk shaping.",
    "cipo/accuracy/base": "Share of attempts that are right, without the further ones of budget=auto.",
    "cipo/accuracy/correction": "Share of corrections that are right.",
    "cipo/filter/dispatched": "Prompts dispatched, those in place of evicted ones included; cipo/filter/* exist with "
    "algorithm.filter_groups.",
    "cipo/filter/attempts": "Rows of attempts thrown away, with prompts that were evicted or left over.",
    "cipo/filter/corrections": "Rows of corrections thrown away with them.",
    "cipo/filter/rehomed": "Rows of corrections that were trained without the prompt that hosted them "
    "(schedule=replay).",
    "cipo/filter/kept_all_wrong": "Prompts that are all wrong and were kept for their corrections, see keep_all_wrong.",
    "cipo/filter/evicted_all_wrong": "Prompts that are all wrong and were evicted before the step had all its prompts.",
    "cipo/rows/base": "Rows of attempts in the batch; an agent loop may return several per session.",
    "cipo/rows/correction": "Rows of corrections in the batch.",
    "cipo/rows/padding": "Rows that only fill up the batch.",
    "cipo/rows/aux": "Rows that only the auxiliary loss trains.",
    "cipo/transfer/loss": "What transfer adds to the loss, before its coefficient.",
    "cipo/transfer/mean_log_prob": "Mean log-probability, under the plain prompt, of the tokens of corrections that "
    "transfer trains.",
    "cipo/transfer/rows": "Rows that transfer trains: corrections, as answers to the plain prompt.",
    "cipo/transfer/prompts": "Prompts that these belong to.",
    "cipo/transfer/own": "Right attempts that transfer trains where they are, see transfer.own.",
    "cipo/transfer/skipped/unknown_prompt": "Corrections left out: an older version drew their attempt, and did not "
    "note the pass rate of its prompt.",
    "cipo/transfer/skipped/no_prompt": "Corrections left out: no attempt at their prompt is in the batch.",
    "cipo/transfer/skipped/no_text_question": "Corrections left out: a message is neither text nor parts, or "
    "what the model sees of an image fits no other row.",
    "cipo/transfer/skipped/unknown_tools": "Corrections left out: which tools their prompt offers cannot be told.",
    "cipo/transfer/skipped/several_outputs": "Corrections, and right attempts of transfer.own, left out: their agent "
    "loop gave several outputs.",
    "cipo/transfer/skipped/no_advantage": "Corrections left out: their advantage is 0, so they would train nothing.",
    "cipo/nudge/context_share": "Share of the attempts that had a strategy context, without the further ones of "
    "budget=auto; cipo/nudge/* exist with nudge.contexts.",
    "cipo/nudge/accuracy_context": "Share of attempts under a context that are right.",
    "cipo/nudge/accuracy_plain": "Share of attempts at the plain prompt that are right, without the further ones of "
    "budget=auto.",
    "cipo/nudge/w2c_context": "`cipo/transitions/w2c` of the corrections under a context, with nudge.corrections=true.",
    "cipo/nudge/w2c_plain": "The same of plain corrections, of attempts that also have corrections under a context.",
    "cipo/nudge/loss": "What the distillation of attempts into the plain prompt adds to the loss, before its "
    "coefficient.",
    "cipo/nudge/rows": "Rows that the distillation adds: attempts under contexts, as answers to the plain prompt.",
    "cipo/nudge/skipped/bad_list": "Prompts with plain attempts alone: their contexts are no list of texts.",
    "cipo/nudge/skipped/no_text_question": "Prompts with plain attempts alone: their question is not plain text (an "
    "image, say).",
    "cipo/nudge/skipped/too_long": "Contexts left out: the prompt with them would not fit into rollout.prompt_length.",
    "cipo/nudge/skipped/correction_too_long": "Contexts left out of an anchor's corrections: the correction prompt "
    "with them would not fit; with nudge.corrections=true.",
    "cipo/nudge/skipped/several_outputs": "Attempts left out of the distillation: their agent loop gave several "
    "outputs.",
    "cipo/nudge/skipped/no_prompt": "Attempts left out of the distillation: their plain prompt is not known.",
    "cipo/nudge/skipped/unknown_tools": "Attempts left out of the distillation: which tools their prompt offers cannot "
    "be told.",
    "cipo/aux/loss": "Auxiliary loss before its coefficient: per correction (nll) or pair (contrastive), times "
    "cipo/aux/share.",
    "cipo/aux/share": "Share of the prompts whose attempts differ in score, by which the auxiliary loss counts with "
    "aux.by_signal; else 1.",
    "cipo/aux/rows": "Corrections, or pairs, that the auxiliary loss trains.",
    "cipo/aux/pairs": "Attempts that were paired with a right rollout.",
    "cipo/aux/adjacent": "Those among them whose right rollout belongs to another prompt.",
    "cipo/aux/skipped/no_donor": "Wrong attempts without a pair: no rollout of the step is right.",
    "cipo/aux/skipped/other_question": "Pairs of two prompts, left out with aux.kind=contrastive.",
    "cipo/aux/skipped/unknown_tools": "Pairs dropped: which tools the right rollout was offered cannot be told.",
    "cipo/aux/skipped/several_outputs": "Pairs and rows of corrections dropped: an agent loop gave several outputs, of "
    "which the last one does not answer the prompt alone.",
    "cipo/aux/skipped/too_long": "Pairs dropped: the prompt would not fit into rollout.prompt_length.",
    "cipo/aux/skipped/no_text_question": "Pairs and rows of corrections dropped: a prompt has no question, or "
    "what the model sees of an image fits no other row.",
    "cipo/aux/skipped/empty_attempt": "Pairs dropped: the part of the attempt to show is empty.",
    "cipo/tokens/base": "Response tokens of the attempts.",
    "cipo/tokens/correction": "Response tokens of the corrections.",
    "cipo/truncated/base": "Share of attempts that are as long as rollout.response_length, and so were cut off.",
    "cipo/truncated/correction": "Share of corrections that are.",
    "cipo/groups/base/all_right": "Share of prompts whose attempts are all right: no signal.",
    "cipo/groups/base/all_wrong": "Share of prompts whose attempts are all wrong: no signal.",
    "cipo/groups/base/mixed": "Share of prompts with right and wrong attempts.",
    "cipo/groups/correction/all_right": "Share of anchors whose corrections are all right: no signal.",
    "cipo/groups/correction/all_wrong": "Share of anchors whose corrections are all wrong: no signal.",
    "cipo/groups/correction/mixed": "Share of anchors with right and wrong corrections.",
    "cipo/seconds/rollout": "Seconds from the dispatch of the prompts to the last verified attempt.",
    "cipo/seconds/correction": "Seconds from then to the last verified correction: what corrections add at the end.",
    "cipo/seconds/selection": "Seconds spent drawing anchors.",
    "cipo/seconds/advantage": "Seconds spent on advantages, verl's own part included.",
    "cipo/seconds/driver": "Seconds of CIPO's own code in verl's driver, waiting for other processes included: "
    "dispatch, rows, order, the estimator, metrics, rho, budget and guard.",
    "cipo/val/accuracy_turn1": "Validation: share of attempts that are right.",
    "cipo/val/accuracy_turn2": "Validation: accuracy after the second turn; an attempt without one keeps its verdict.",
    "cipo/val/c2c": "Validation: share of the corrections of right attempts that are right.",
    "cipo/val/c2w": "Validation: share of the corrections of right attempts that are wrong.",
    "cipo/val/w2c": "Validation: share of the corrections of wrong attempts that are right.",
    "cipo/val/w2w": "Validation: share of the corrections of wrong attempts that are wrong.",
    "cipo/val/retry": "Validation: what `cipo/val/w2c` would be with another attempt in place of each correction; "
    "needs `val_kwargs.n` of 2 or more and `val_kwargs.temperature` above 0.",
    "cipo/val/copy_rate": "Validation: share of corrections that repeat the shown part of the attempt.",
    "cipo/val/copy_rate_failed": "Validation: the same for corrections of wrong attempts only.",
    "cipo/val/rows": "Validation: corrections that were verified.",
    "cipo/val/skipped": "Validation: attempts without a second turn because no correction prompt could be built.",
    "cipo/val/failed_sessions": "Validation: correction sessions that raised or returned nothing.",
    "cipo/val/failed_attempts": "Validation: attempts that raised; no accuracy counts them.",
    "cipo/val/verifier_errors": "Validation: calls in which the verifier gave no verdict.",
    "cipo/val/verifier_given_up": "Validation: sessions still without a verdict after verifier_retries.",
    "cipo/val/hacking_gap": "Validation: `cipo/hacking_gap`, also logged with val_corrections=0.",
    "cipo/val/second_verifier_errors": "Validation: sessions without a verdict of the second verifier.",
}


def check_names(metrics: Iterable[str]) -> None:
    """Raises: KeyError naming every cipo/ name that is not declared in METRICS; other names pass.

    Those of the validation may have a data source in them: cipo/val/{source}/w2c is declared as cipo/val/w2c.
    """
    undeclared = sorted(name for name in metrics if name.startswith(PREFIX) and _declared(name) not in METRICS)
    if undeclared:
        raise KeyError(f"metrics not declared in verl_cipo.core.metrics.METRICS: {', '.join(undeclared)}")


def _declared(name: str) -> str:
    return VALIDATION + name.rpartition("/")[2] if name.startswith(VALIDATION) else name


def batch_metrics(table: RowTable, *, longest: int | None = None) -> dict[str, float]:
    """All metrics that follow from the rows of a batch.

    Outcomes count final rows only, sizes all rows, and padding nothing but itself. A mean over nothing is left out.

    Args:
        longest: rollout.response_length in tokens; None leaves out what was truncated.
    """
    rows, scores, tokens, copied = table.rows, table.scores, table.tokens, table.copied
    metrics = {"rows/padding": float((rows.stream == PADDING).sum())}
    for stream, code in _STREAMS.items():
        member = rows.stream == code
        metrics[f"rows/{stream}"] = float(member.sum())
        metrics[f"tokens/{stream}"] = float(tokens[member].sum())
        final = member & rows.final
        # The budget makes further attempts where others have failed.
        drawn = final & ~rows.further
        if drawn.any():
            metrics[f"reward/{stream}"] = float(scores[drawn].mean())
            metrics[f"accuracy/{stream}"] = float(rows.correct[drawn].mean())
        if final.any():
            for outcome, share in _group_outcomes(rows.group[final], rows.correct[final]).items():
                metrics[f"groups/{stream}/{outcome}"] = share
            if longest is not None:
                metrics[f"truncated/{stream}"] = float((tokens[final] >= longest).mean())
        twice = drawn & ~np.isnan(table.second)
        if twice.any():
            metrics[_GAP[stream]] = float(rows.correct[twice].mean() - table.second[twice].mean())
    final = (rows.stream == CORRECTION) & rows.final
    transitions = Transitions.from_arrays(rows.anchor_correct[final], rows.correct[final])
    metrics.update({f"transitions/{name}": rate for name, rate in transitions.rates().items()})
    if transitions.retention is not None:
        metrics["retention"] = transitions.retention
    if final.any():
        metrics["copy_rate"] = float(copied[final].mean())
    wrong = final & ~rows.anchor_correct
    if wrong.any():
        metrics["copy_rate_failed"] = float(copied[wrong].mean())
    return {PREFIX + name: value for name, value in metrics.items()}


def nudge_metrics(table: RowTable) -> dict[str, float]:
    """Of attempts under strategy contexts and beside them, without further ones, and of corrections likewise; a mean
    over nothing is left out."""
    rows = table.rows
    drawn = (rows.stream == BASE) & rows.final & ~rows.further
    under_context = rows.context != PLAIN
    metrics = {}
    if drawn.any():
        metrics["context_share"] = float(under_context[drawn].mean())
    for name, own in (("context", drawn & under_context), ("plain", drawn & ~under_context)):
        if own.any():
            metrics[f"accuracy_{name}"] = float(rows.correct[own].mean())
    wrong = (rows.stream == CORRECTION) & rows.final & ~rows.anchor_correct
    of_both = np.isin(rows.group, np.unique(rows.group[wrong & under_context]))
    for name, own in (("context", wrong & under_context), ("plain", wrong & of_both & ~under_context)):
        if own.any():
            metrics[f"w2c_{name}"] = float(rows.correct[own].mean())
    return {f"{PREFIX}nudge/{name}": value for name, value in metrics.items()}


def _group_outcomes(group: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """Shares of groups that are all right, all wrong and mixed."""
    verdicts: dict[str, set[bool]] = {}
    for name, verdict in zip(group.tolist(), correct.tolist(), strict=True):
        verdicts.setdefault(name, set()).add(verdict)
    kinds = list(verdicts.values())
    return {
        "all_right": kinds.count({True}) / len(kinds),
        "all_wrong": kinds.count({False}) / len(kinds),
        "mixed": kinds.count({True, False}) / len(kinds),
    }
