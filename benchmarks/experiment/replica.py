"""A step of CIPO or GRPO in plain PyTorch: this package's core modules without verl, Ray and vLLM, to screen arms fast.

It asks, draws, weighs and updates as the V0 trainer does, with the package's own code for everything that CIPO decides.
One optimizer step a batch, so that the policy's ratio is 1 and no clipping takes part. docs/results.md says how well it
agrees with runs through verl.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torchdata.stateful_dataloader.sampler import RandomSampler

from benchmarks.experiment.arms import Arm
from benchmarks.experiment.held_out import answer_of, held_out
from benchmarks.experiment.options import OWN, divides_by_std, knobs, verifiers
from benchmarks.experiment.policy import Policy, Sample
from benchmarks.experiment.setting import Setting
from examples.tiny.task import Task
from verl_cipo.core.advantage import two_stream_advantage
from verl_cipo.core.anchors import Attempt, Group, anchor_budget, medium, select_anchors
from verl_cipo.core.aux_loss.distill import NUDGE_WEIGHTS
from verl_cipo.core.aux_loss.losses import PAIR, PARTNER, SIGN, WEIGHTS, aux_loss, partner_scores
from verl_cipo.core.aux_loss.plan import AuxPlan, Shown, plan_aux, plan_metrics
from verl_cipo.core.aux_loss.transfer import TRANSFER_WEIGHTS, regress_loss, transfer_loss, transfer_weights
from verl_cipo.core.keys import RowKey, correction_group
from verl_cipo.core.metrics import batch_metrics, nudge_metrics
from verl_cipo.core.nudge import listed
from verl_cipo.core.prompts import Others, Said, correction_prompt
from verl_cipo.core.rows import Mark, RowTable
from verl_cipo.core.steering.budget import BudgetState, drawn_first, observe_budget, shares
from verl_cipo.core.steering.rho import RhoState, update_rho
from verl_cipo.integration.contexts import Contexts, SessionRequest, asked_of_anchor, contexts_of
from verl_cipo.integration.rollout.reports import Reports
from verl_cipo.integration.rollout.slots import Slots


@dataclass(frozen=True)
class Row:
    """A response of the step: its key, what is noted on it, the chat that it answers, and the response.

    messages: that of an attempt under a context is without it, what was asked is in the sample.
    """

    key: RowKey
    mark: Mark
    index: int
    messages: list[dict]
    sample: Sample


class Replica:
    """The trainer of one run.

    Args:
        folder: of the task, as `prepare` makes it.
        arm: its options for verl that `options.knobs` and `options.verifiers` know are read; others are refused.
        seed: of the order of problems, of the sampling and of the draws.
        setting: what all arms share.
    """

    def __init__(self, folder: Path, arm: Arm, seed: int, setting: Setting):
        torch.manual_seed(seed)
        self._setting, self._n, self._seed = setting, setting.n * arm.rollouts, seed
        self.cipo, self._by_std = knobs(arm, seed), divides_by_std(arm)
        self.policy = Policy(folder / "model", **verifiers(arm, self.cipo))
        self._own = sum(float(option.removeprefix(OWN)) for option in arm.options if option.startswith(OWN))
        self._rho, self._budget = RhoState.initial(self.cipo), BudgetState()
        self._reports = Reports()
        self._slots = Slots(self.cipo, self._reports)
        tokenizer = self.policy.tokenizer
        self._prompt = correction_prompt(
            self.cipo,
            tokenizer,
            prompt_length=Task.correction_prompt_length,
            count_tokens=lambda messages: len(self.policy.ids(messages)),
        )
        self._optimizer = torch.optim.AdamW(self.policy.model.parameters(), lr=setting.learning_rate, weight_decay=0.01)
        self._problems = pq.read_table(folder / "data" / "train.parquet").to_pylist()
        column = self.cipo.nudge.contexts
        if column is not None and not any(listed(problem, column) for problem in self._problems):
            raise ValueError(f"arm {arm.name}: no problem of {folder} has {column}, as those of stuck_contexts have")
        self._batches = self._draw_batches()

    def _draw_batches(self) -> Iterator[list[dict[str, Any]]]:
        """Batches of problems in the order in which verl's trainer takes them."""
        sampler = RandomSampler(self._problems, generator=torch.Generator().manual_seed(self._seed))
        while True:
            order, size = list(sampler), self._setting.prompts
            for at in range(0, len(order) - size + 1, size):
                yield [self._problems[i] for i in order[at : at + size]]

    def step(self, number: int) -> dict[str, float]:
        """Roll out, train, and move rho; returns the metrics of the step, named as through verl."""
        started = time.monotonic()
        problems = {f"{number}p{i}": problem for i, problem in enumerate(next(self._batches))}
        contexts = {}
        if self.cipo.nudges:
            what, how = (self._prompt, self.cipo, self._reports.step), {"sessions": self._n, "step": number}
            contexts = {uid: contexts_of(asked_by(problem), *what, **how) for uid, problem in problems.items()}
        rows = self._attempts(
            [(uid, i, problem) for uid, problem in problems.items() for i in range(self._n)], contexts
        )
        if self.cipo.rolls_out:
            rows += self._second_turn(problems, rows, number)
        table = table_of(rows)
        sampled = time.monotonic()
        measured = batch_metrics(table) | (nudge_metrics(table) if self.cipo.nudges else {})
        measured |= {f"cipo/{name}": count for name, count in self._reports.pop_step().items()}
        measured |= self._update(rows, table, number)
        measured["cipo/rho"] = self._rho.rho
        self._rho = update_rho(self._rho, measured.get("cipo/retention"), config=self.cipo)
        if self.cipo.moves_budget:
            self._budget, added = observe_budget(self._budget, table, measured)
            measured |= added
        return measured | {"timing_s/gen": sampled - started, "timing_s/step": time.monotonic() - started}

    def _attempts(
        self, asked: Sequence[tuple[str, int, dict[str, Any]]], contexts: Mapping[str, Contexts] = MappingProxyType({})
    ) -> list[Row]:
        """Attempts of (uid, session, problem); sessions from n on are further ones, which have no context."""
        under = [contexts.get(uid, Contexts()) for uid, *_ in asked]
        chats = [own.asked(session, problem["prompt"]) for own, (_, session, problem) in zip(under, asked, strict=True)]
        samples = self.policy.sample(
            [(chat, answer_of(problem)) for (*_, problem), chat in zip(asked, chats, strict=True)]
        )
        return [
            Row(
                RowKey(uid, session),
                Mark(
                    correct=sample.right,
                    score=float(sample.right),
                    further=session >= self._n,
                    second=sample.second,
                    **own.noted(session),
                ),
                problem["extra_info"]["index"],
                problem["prompt"],
                sample,
            )
            for (uid, session, problem), own, sample in zip(asked, under, samples, strict=True)
        ]

    def _second_turn(self, problems: dict[str, dict[str, Any]], attempts: Sequence[Row], number: int) -> list[Row]:
        """Corrections of the anchors, and what the budget makes in their place."""
        n = self.cipo.n_corrections or self._setting.n
        groups = {group.uid: group for group in table_of(attempts).attempts()[0]}
        used = shares(self._budget) if self.cipo.moves_budget else None
        budget = anchor_budget(len(groups), self.cipo.replay_fraction)
        slots = self._slots.begin(budget, used, step=number, uids=[*groups])
        for group in groups.values():
            slots.add(group)
        anchors = self._anchors(list(groups.values()), number)
        corrected, later = slots.divide([(anchor, groups[anchor.uid].outcome) for anchor in anchors])
        sessions = Counter(dict.fromkeys(groups, self._n))
        further = []
        for uid in (*slots.begun.elements(), *later):
            further += [(uid, sessions[uid] + i, problems[uid]) for i in range(n)]
            sessions[uid] += n
        rows = self._attempts(further)
        of_key = {row.key: row for row in attempts}
        asked: list[tuple[Attempt, int, Row, SessionRequest]] = []
        for anchor in (anchor for anchor, own in zip(anchors, corrected, strict=True) if own):
            row = of_key[RowKey(anchor.uid, anchor.session)]
            others = self._others(anchor, groups[anchor.uid], of_key, number)
            how = {"n": n, "step": number, "anchor": anchor.session}
            what = (asked_by(problems[anchor.uid]), row.sample.text, others, self._prompt, self.cipo)
            own, reason = asked_of_anchor(*what, self._reports.step, **how)
            if reason is not None:
                self._reports.step[f"anchors/skipped/{reason}"] += 1
            asked += [(anchor, i, row, one) for i, one in enumerate(own)]
        samples = self.policy.sample(
            [(one.request.messages, answer_of(problems[anchor.uid])) for anchor, _, _, one in asked]
        )
        for (anchor, i, row, (request, context)), sample in zip(asked, samples, strict=True):
            outcome = groups[anchor.uid].outcome
            mark = Mark(
                correct=sample.right,
                score=float(sample.right),
                second=sample.second,
                anchor=anchor.session,
                anchor_correct=anchor.correct,
                copied=self._prompt.repeats(request.shown, sample.text),
                context=context,
                **(outcome._asdict() if outcome else {}),
            )
            key = RowKey(correction_group(anchor.uid, anchor.session), i)
            rows.append(Row(key, mark, row.index, request.messages, sample))
        return rows

    def _anchors(self, groups: Sequence[Group], number: int) -> list[Attempt]:
        """Those of the step."""
        if self.cipo.wrong_alone:
            groups = [
                Group(group.uid, tuple(replace(a, correctable=not a.correct) for a in group.attempts))
                for group in groups
            ]
        used = shares(self._budget) if self.cipo.moves_budget else None
        band = {"delta_low": self.cipo.delta_low, "delta_high": self.cipo.delta_high}
        anchors = select_anchors(
            groups,
            budget=anchor_budget(len(groups), self.cipo.replay_fraction),
            rho=self._rho.rho,
            seed=self.cipo.seed,
            step=number,
            first=drawn_first(used, **band),
            **band,
        )
        pass_rates = {group.uid: group.pass_rate for group in groups}
        for anchor in anchors:
            self._reports.count_anchor(anchor, in_band=medium(pass_rates[anchor.uid], **band))
        return anchors

    def _others(self, anchor: Attempt, group: Group, of_key: dict[RowKey, Row], number: int) -> Others:
        """What is shown beside an anchor."""
        said = {a.session: Said(a.session, of_key[RowKey(a.uid, a.session)].sample.text) for a in group.attempts}
        wrong = [said[attempt.session] for attempt in group.attempts if not attempt.correct]
        lots = {"seed": self.cipo.seed, "step": number, "index": anchor.index}
        return self._prompt.beside(said[anchor.session], wrong, **lots)

    def _update(self, rows: Sequence[Row], table: RowTable, number: int) -> dict[str, float]:
        """One optimizer step on all rows; returns what it measured."""
        in_stream = self.cipo.lambda_corr > 0
        trained = [i for i, row in enumerate(rows) if in_stream or row.mark.anchor_correct is None]
        plan = self._plan(rows, table, number, in_stream=in_stream)
        samples = {str(row.key): row.sample for row in rows}
        keys = [str(rows[i].key) for i in trained] + [str(new.key) for new in plan.rows]
        pairs = [(rows[i].sample.prompt, rows[i].sample.response) for i in trained]
        pairs += [(new.prompt_ids, samples[new.source].response) for new in plan.rows]
        width = max(len(response) for _, response in pairs)
        mask = torch.zeros(len(pairs), width)
        for i, (_, response) in enumerate(pairs):
            mask[i, : len(response)] = 1
        policy_mask = mask.clone()
        policy_mask[len(trained) :] = 0
        weight = -self._advantages([rows[i] for i in trained], table, trained, mask) / policy_mask.sum()
        fields = plan.fields(keys, mask, config=self.cipo, optimizer_steps=1)
        if self.cipo.aux.contrastive:
            old = self._log_probs(pairs, mask)
            fields[PARTNER] = partner_scores(old, fields[WEIGHTS], fields[SIGN], fields[PAIR])
        own = -self._own * transfer_weights(mask, self._rare(table, trained, len(keys)), optimizer_steps=1)
        self._optimizer.zero_grad()
        added = dict.fromkeys(("cipo/aux/loss", "cipo/transfer/loss", "cipo/nudge/loss"), 0.0)
        # Rows of groups that are all right or all wrong have no gradient.
        weight = weight + own
        of_tokens = [weight, *(fields[name] for name in (WEIGHTS, TRANSFER_WEIGHTS, NUDGE_WEIGHTS) if name in fields)]
        kept = torch.stack([(one != 0).any(dim=-1) for one in of_tokens]).any(dim=0).nonzero()[:, 0]
        for part, log_prob in self.policy.log_probs([pairs[i] for i in kept.tolist()], width=width):
            places = kept[part]
            loss = (weight[places] * log_prob).sum()
            if self.cipo.aux.coef > 0:
                own_fields = [fields[name][places] for name in (WEIGHTS, SIGN, PARTNER)]
                term, value = aux_loss(log_prob, *own_fields, kind=self.cipo.aux.kind, beta=self.cipo.aux.beta)
                loss = loss + self.cipo.aux.coef * term
                added["cipo/aux/loss"] += float(value)
            if self.cipo.transfers:
                how = self.cipo.transfer
                moved = fields[TRANSFER_WEIGHTS][places]
                term = transfer_loss(log_prob, moved, kind=how.kind, gamma=how.gamma, floor=how.floor)
                loss = loss + how.coef * term
                added["cipo/transfer/loss"] += float(term)
            if self.cipo.distils:
                term = regress_loss(log_prob, fields[NUDGE_WEIGHTS][places])
                loss = loss + self.cipo.nudge.coef * term
                added["cipo/nudge/loss"] += float(term.detach())
            loss.backward()
        measured = {"actor/grad_norm": self._take(), "tokens": float(sum(len(row.sample.response) for row in rows))}
        measured["trained_tokens"] = float(sum(len(prompt) + len(response) for prompt, response in pairs))
        return measured | plan_metrics([plan], self.cipo) | (added if self.cipo.adds_loss else {})

    def _take(self) -> float:
        """Take the optimizer step by the gradient that is there; returns its length."""
        norm = torch.nn.utils.clip_grad_norm_(self.policy.model.parameters(), 1.0)
        self._optimizer.step()
        return float(norm)

    def _advantages(self, trained: Sequence[Row], table: RowTable, places: Sequence[int], mask: Tensor) -> Tensor:
        """(N, T) advantages of all rows of the update, 0 for those that the policy loss does not train."""
        rewards = torch.zeros(len(trained), mask.shape[1])
        rewards[:, 0] = torch.tensor([row.sample.right for row in trained], dtype=torch.float32)
        found = torch.zeros_like(mask)
        found[: len(trained)] = two_stream_advantage(
            rewards,
            mask[: len(trained)],
            table.rows.take(np.array(places)),
            lambda_corr=self.cipo.lambda_corr,
            lambda_risk=self.cipo.lambda_risk,
            norm_by_std=self._by_std,
            loss_agg_mode="token-mean",
            between=self.cipo.nudge.between,
        )
        return found

    def _rare(self, table: RowTable, trained: Sequence[int], size: int) -> Tensor:
        """(size,) 1 / P over a prompt's right attempts where at most `transfer.below` are right; P prompts a step."""
        groups, key_of = table.attempts()
        weights: dict[str, float] = {}
        for group in groups:
            right = [attempt for attempt in group.attempts if attempt.correct]
            if right and group.pass_rate <= self.cipo.transfer.below:
                weights |= {key_of[attempt]: 1 / len(right) / len(groups) for attempt in right}
        found = [weights.get(table.keys[i], 0.0) for i in trained]
        return torch.tensor(found + [0.0] * (size - len(found)))

    def _plan(self, rows: Sequence[Row], table: RowTable, number: int, *, in_stream: bool) -> AuxPlan:
        if not self.cipo.adds_loss:
            return AuxPlan()
        of_key = {str(row.key): row for row in rows}

        def shown(keys: Sequence[str]) -> dict[str, Shown]:
            found = {key: of_key[key] for key in keys}
            return {
                key: Shown(row.sample.prompt, row.sample.response, row.messages, bound=False)
                for key, row in found.items()
            }

        return plan_aux(
            table,
            shown,
            config=self.cipo,
            prompt=self._prompt,
            encode=lambda messages, tools=(): self.policy.ids(messages),
            step=number,
            in_stream=in_stream,
            norm_by_std=self._by_std,
        )

    @torch.no_grad()
    def _log_probs(self, pairs: Sequence[tuple[list[int], list[int]]], mask: Tensor) -> Tensor:
        """(N, T) log-probabilities of (prompt, response) rows, shaped as `mask`."""
        found = torch.zeros_like(mask)
        for places, log_prob in self.policy.log_probs(pairs):
            found[places] = log_prob
        return found


def asked_by(problem: Mapping[str, Any]) -> dict[str, Any]:
    """A problem as verl's data set gives it to a rollout worker."""
    return {**problem, "raw_prompt": problem["prompt"], "index": problem["extra_info"]["index"]}


def table_of(rows: Sequence[Row]) -> RowTable:
    """What the package's modules know of the rows."""
    return RowTable.of_marks(
        [str(row.key) for row in rows],
        [row.mark for row in rows],
        index=[row.index for row in rows],
        scores=np.array([row.mark.score for row in rows]),
        tokens=np.array([len(row.sample.response) for row in rows]),
    )


def run(arm: Arm, seed: int, setting: Setting, folder: Path, output: Path) -> dict[str, Any]:
    """Train an arm and sample the held-out problems; returns what `runs.run` returns, but for `made_with`.

    Writes metrics.jsonl into `output`, as verl does.
    """
    started, tokens, trained_s = time.monotonic(), 0.0, 0.0
    if arm.algo is None:
        policy = Policy(folder / "model")
    else:
        trainer = Replica(folder, arm, seed, setting)
        policy = trainer.policy
        with open(output / "metrics.jsonl", "w") as file:
            for number in range(1, setting.steps + 1):
                measured = trainer.step(number) | {"training/global_step": number}
                tokens, trained_s = tokens + measured["tokens"], trained_s + measured["timing_s/step"]
                file.write(json.dumps({"step": number, "data": measured}) + "\n")
                file.flush()
    found = held_out(policy, folder, setting)
    wall_s = round(time.monotonic() - started, 1)
    return {"commit": "", "tokens": round(tokens), "train_s": round(trained_s, 1), "wall_s": wall_s, **found}
