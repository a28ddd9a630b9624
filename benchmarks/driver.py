"""What a step of CIPO costs verl's driver beside GRPO: each part of it, and whether memory grows with the steps.

    python benchmarks/driver.py --json outputs/driver.json      # 512 prompts x 16 rollouts x 8k tokens, 6 GB
    python benchmarks/driver.py --quick                         # an eighth of the prompts

A made-up step with one anchor a prompt and as many corrections as rollouts, so that it trains twice the rows of GRPO,
and in addition a pair a prompt, as preset=balanced has it.
Run are the project's own classes, in one process; left out is what moves data between processes (Ray, TransferQueue).

selection   the coordinator (a process of its own): every group reported, anchors drawn and handed out
prompts     what the driver does for the correction prompts: nothing. They are made in the rollout workers, one an
            anchor, while others generate; prompt_in_worker_ms is one of them, with an attempt of all tokens
rows        the table of what each row is with its score, its order, the mini-batches, the rows for the estimator
pairs       what preset=balanced appends: the plan, reading the rows that it shows, rendering the prompts, the new rows;
            and the weights of all rows, as the workers get them
estimator   verl's compute_advantage with adv_estimator=cipo, less what it takes with grpo on the same rows: below 0
            when CIPO's is faster, which makes up for no other part
metrics     the metrics of the batch, rho and the guard

coordinator bytes   what the rollout workers send to the coordinator, a process of its own, and get back in a step of
schedule=replay, in MB, as Ray serializes it: ranks and references of all attempts, then those of the drawn anchors. The
texts stay on the node that made them, but for those of the drawn anchors, which are not counted; 5 MB are the limit.

The limit of the time is a tenth of verl's compute_advantage for GRPO on the same batch, plus 50 ms. Pairs, which other
presets do not have, count apart: their prompts are rendered here, and the limit is 10 ms each. Over a limit the exit
status is 1.
``overhead_whole_ms`` counts the whole estimator in place of the difference, though GRPO's is not run then.

The estimator writes its result into huge pages. In a virtual machine that gives free memory back to its host (a balloon
with free page reporting) they have to be fetched from there again after a pause of a few seconds, as the case is when
other work slows the rounds down: the estimator's figure, and that one alone, then is that of the host.
"""

import asyncio
import gc
import sys
import tracemalloc
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import ray
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.ray_trainer import compute_advantage
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from benchmarks.common import batch_of, lengths_of, milliseconds, parser, token_fields
from benchmarks.json_file import write_json
from examples.tiny.prepare import make_tokenizer
from verl_cipo.core.anchors import Attempt, Group
from verl_cipo.core.aux_loss.plan import Tools
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.draws import lot
from verl_cipo.core.keys import RowKey, correction_group
from verl_cipo.core.metrics import batch_metrics
from verl_cipo.core.prompts import TEMPLATES, correction_prompt
from verl_cipo.core.rows import Mark, RowTable
from verl_cipo.integration.rendering import Rendering
from verl_cipo.integration.rollout.coordinator import AnchorCoordinator
from verl_cipo.integration.rollout.payloads import keep
from verl_cipo.integration.train import aux
from verl_cipo.integration.train.controller import Controller
from verl_cipo.integration.train.estimator import NAME, BatchRows, register, rows_of_batch
from verl_cipo.integration.train.joint_update import interleaved
from verl_cipo.integration.train.rows import row_sums, rows_in_order

PROMPTS, ROLLOUTS, TOKENS = 512, 16, 8192
MEMORY_PROMPTS, MEMORY_ROLLOUTS, MEMORY_TOKENS = 32, 8, 128
PAIR_MS = 10.0
"""What a pair may take."""
COORDINATOR_MB = 5.0
"""What may pass through the coordinator in a step of the whole size."""
# Of which the first quarter fills caches.
MEMORY_STEPS = 200
ALGORITHM = OmegaConf.create({"norm_adv_by_std_in_grpo": True})


class Queue:
    """Stands in for TransferQueue, with the rows of a step; those that are read at first are made before the clock."""

    def __init__(self, lengths: dict[str, int]):
        self._lengths = lengths
        self._read: dict[tuple[str, ...], TensorDict] = {}

    def kv_batch_get(self, keys: list[str], select_fields: tuple[str, ...] = (), **_: Any) -> TensorDict:
        """Whole rows, or their response masks."""
        place = (*keys, *select_fields)
        if place not in self._read:
            rows = [self._row(self._lengths.get(key, 0)) for key in keys]
            kept = [{name: row[name] for name in select_fields or row} for row in rows]
            self._read[place] = list_of_dict_to_tensordict(kept)
        return self._read[place]

    def kv_batch_put(self, **_: Any) -> None:
        """Nothing is kept."""

    def _row(self, length: int) -> dict[str, Any]:
        prompt, response = torch.full((64,), 5), torch.full((length,), 5)
        sequence, ones = torch.cat([prompt, response]), torch.ones_like(response)
        zeros = torch.zeros(length)
        return {
            "prompts": prompt,
            "responses": response,
            "input_ids": sequence,
            "attention_mask": torch.ones_like(sequence),
            "position_ids": torch.arange(len(sequence)),
            "response_mask": ones,
            "loss_mask": ones,
            "rm_scores": zeros,
            "rollout_log_probs": zeros,
            "uid": "u",
            "raw_prompt": [{"role": "user", "content": "What is 2 + 2?"}],
            "multi_modal_inputs": {},
        }


class Step:
    """The steps of a run over made-up rollouts; what lives as long as a run lives here, too."""

    def __init__(self, prompts: int, rollouts: int, tokens: int):
        self.cipo = CIPOConfig()
        self.controller = Controller(self.cipo)
        self.global_steps = 1
        self.coordinator = AnchorCoordinator(self.cipo.to_mapping(), train_batch_size=prompts)
        self.shape = (prompts, rollouts, tokens)

    def roll_out(self) -> None:
        """Make the attempts of a step, draw their anchors, and make the corrections."""
        prompts, rollouts, tokens = self.shape
        rng = np.random.default_rng(self.global_steps)
        self.groups = []
        for i in range(prompts):
            uid = f"{self.global_steps:016x}{i:016x}"
            right = rng.random(rollouts) < rng.random()
            attempts = [
                Attempt(uid=uid, index=i, session=j, correct=bool(mark), score=float(mark))
                for j, mark in enumerate(right)
            ]
            self.groups.append(Group(uid, tuple(attempts)))
        self.anchors = self.select()
        self.keys, self.marks, self.index = [], [], []
        for group in self.groups:
            for attempt in group.attempts:
                self._row(group.uid, attempt.index, attempt.session, Mark(correct=attempt.correct))
        for group in self.groups:
            for number in self.anchors[group.uid]:
                anchor = group.attempts[number]
                for session, right in enumerate((rng.random(rollouts) < 0.5).tolist()):
                    mark = Mark(correct=right, anchor=number, anchor_correct=anchor.correct)
                    self._row(correction_group(group.uid, number), anchor.index, session, mark)
        self.scores = np.array([float(mark.correct) for mark in self.marks], dtype=np.float32)
        self.lengths = lengths_of(len(self.keys), tokens, rng)
        ends = torch.from_numpy(np.concatenate([[0], np.cumsum(self.lengths)]))
        rewards = torch.zeros(int(ends[-1]))
        rewards[ends[1:] - 1] = torch.from_numpy(self.scores)
        self.rewards = torch.nested.nested_tensor_from_jagged(rewards, ends)

    def _row(self, group: str, index: int, session: int, mark: Mark) -> None:
        self.keys.append(str(RowKey(group, session)))
        self.index.append(index)
        self.marks.append(mark)

    def select(self) -> dict[str, list[int]]:
        """uid -> sessions that became anchors, as the workers are told."""
        return asyncio.run(self._select())

    async def _select(self) -> dict[str, list[int]]:
        uids = [group.uid for group in self.groups]
        await self.coordinator.open(0, uids=uids, rho=self.controller.rho, step=self.global_steps)
        for group in self.groups:
            await self.coordinator.add(0, group, {})
        chosen: dict[str, list[int]] = {}
        for uid in uids:
            chosen[uid] = []
            while (order := await self.coordinator.next(0, uid)) is not None:
                chosen[uid] += order.anchors
            await self.coordinator.close(0, uid, {})
        self.statistics = await self.coordinator.pop_statistics()
        return chosen

    def lay_out(self) -> None:
        """The table of the rows, the order of the batch, and the rows in it."""
        self.table = RowTable.of_marks(
            list(self.keys),
            self.marks,
            index=self.index,
            scores=row_sums(self.rewards),
            tokens=self.lengths,
        )
        tags = [{} for _ in self.keys]
        batch = KVBatchMeta(partition_id="train", keys=list(self.keys), tags=tags)
        batch.reorder(self.table.stable_order(batch.keys, seed=self.cipo.seed, step=self.global_steps))
        batch.reorder(interleaved(self.table.streams(batch.keys)))
        self.rows = rows_in_order(self.table, batch)
        self.place = batch.keys

    def pair(self, rendering: Rendering) -> KVBatchMeta:
        """The batch with what the auxiliary loss and transfer train, and with their fields."""
        tags = [{"response_len": length} for length in self.lengths.tolist()]
        batch = KVBatchMeta(partition_id="train", keys=list(self.keys), tags=tags)
        how = {"rendering": rendering, "step": self.global_steps, "in_stream": True, "norm_by_std": True}
        grown, rows = aux.add_aux_rows(batch, self.table, config=self.cipo, **how)
        rows.put_fields(grown, config=self.cipo, optimizer_steps=1)
        return grown

    def advantages(self, fields: dict[str, torch.Tensor], adv_estimator: str) -> torch.Tensor:
        """Through verl's compute_advantage; ``fields`` in the order of the batch."""
        context = BatchRows(rows=self.rows, config=self.cipo, loss_agg_mode="token-mean")
        with rows_of_batch(context):
            data = compute_advantage(batch_of(fields, self.rows.group), adv_estimator, config=ALGORITHM)
        return data.batch["advantages"]

    def fields(self) -> dict[str, torch.Tensor]:
        """Rewards and mask in the order of the batch."""
        position = {key: i for i, key in enumerate(self.keys)}
        order = np.array([position[key] for key in self.place])
        return token_fields(self.scores[order], self.lengths[order])

    def measure(self) -> dict[str, float]:
        """Metrics of the step; moves rho and the guard."""
        own = batch_metrics(self.table) | {f"cipo/{name}": value for name, value in self.statistics.items()}
        how = {"step": self.global_steps, "loss_agg_mode": "token-mean"}
        return own | self.controller.observe({**own, "actor/entropy": 1.0}, self.table, **how)


def rendering_of(tokens: int) -> Rendering:
    """Over the demo's tokenizer, with room for an attempt of ``tokens`` tokens."""
    tokenizer = make_tokenizer(TEMPLATES["math"])

    def encode(messages: list[dict], tools: Tools = ()) -> list[int]:
        return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)

    prompt = correction_prompt(
        CIPOConfig(), tokenizer, prompt_length=2 * tokens, count_tokens=lambda messages: len(encode(messages))
    )
    return Rendering(prompt=prompt, encode=encode)


def worker_prompt(tokens: int) -> Callable[[], Any]:
    """Builds one correction prompt with an attempt of ``tokens`` tokens."""
    prompt = rendering_of(tokens).prompt
    question = [{"role": "user", "content": "What is 2 + 2?"}]
    attempt = "1 " * (tokens // 2)
    return partial(prompt.build, question, attempt)


def overhead(prompts: int, rollouts: int, tokens: int, *, rounds: int) -> dict[str, Any]:
    """The parts of a step, ms, their sums and the limit."""
    step = Step(prompts, rollouts, tokens)
    step.roll_out()
    step.lay_out()
    fields = step.fields()
    light = {"selection": step.select, "rows": step.lay_out, "metrics": step.measure}
    parts = milliseconds(light, rounds=rounds)
    estimators = milliseconds({name: partial(step.advantages, fields, name) for name in ("grpo", NAME)}, rounds=rounds)
    parts |= {"prompts": 0.0, "estimator": estimators[NAME] - estimators["grpo"]}
    with patch.object(aux, "tq", Queue(dict(zip(step.keys, step.lengths.tolist(), strict=True)))):
        pairs = milliseconds({"pairs": partial(step.pair, rendering_of(tokens))}, rounds=rounds)["pairs"]
    figures = {
        "rows": len(step.keys),
        "tokens": tokens,
        "grpo_compute_advantage_ms": estimators["grpo"],
        "cipo_compute_advantage_ms": estimators[NAME],
        "parts_ms": parts,
        "overhead_ms": sum(max(0.0, part) for part in parts.values()),
        "overhead_whole_ms": sum(parts.values()) + estimators["grpo"],
        "limit_ms": 0.1 * estimators["grpo"] + 50,
        "pairs_ms": pairs,
        "pairs_limit_ms": PAIR_MS * prompts,
        "prompt_in_worker_ms": milliseconds({"one": worker_prompt(tokens)}, rounds=rounds)["one"],
    }
    return figures


async def coordinator_mb(prompts: int, rollouts: int) -> float:
    """MB of arguments and results through the coordinator in a step of schedule=replay; Ray must run."""
    serialize = ray._private.worker.global_worker.get_serialization_context().serialize
    coordinator = AnchorCoordinator(CIPOConfig(schedule="replay").to_mapping(), train_batch_size=prompts)
    sent = 0
    for step in (1, 2):
        uids = [f"{uuid.uuid4()}" for _ in range(prompts)]
        await coordinator.open(step, uids=uids, rho=0.3, step=step)
        # Of step 1 what is reported, of step 2 what is drawn of that.
        for i, uid in enumerate(uids):
            if step == 1:
                attempts = [Attempt(uid, i, j, j % 2 == 0, float(j % 2 == 0), lot(i).hex()) for j in range(rollouts)]
                report = (step, Group(uid, tuple(attempts)), keep(dict.fromkeys(range(rollouts), "text"), {}, [], {}))
                sent += serialize(report).total_bytes
                await coordinator.add(*report)
            else:
                sent += serialize(await coordinator.hosted(step, uid)).total_bytes
            await coordinator.close(step, uid, {})
    return sent / 1e6


def memory(prompts: int, rollouts: int, tokens: int, *, steps: int) -> dict[str, float]:
    """kB that Python holds and that the process has, after a quarter of the steps and after all of them."""
    step = Step(prompts, rollouts, tokens)
    held = {}
    tracemalloc.start()
    try:
        for i in range(1, steps + 1):
            step.global_steps = i
            step.roll_out()
            step.lay_out()
            step.advantages(step.fields(), NAME)
            step.measure()
            if i in (steps // 4, steps):
                gc.collect()
                status = Path("/proc/self/status").read_text().splitlines()
                resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))
                held[i] = {"python_kb": tracemalloc.get_traced_memory()[0] / 1024, "resident_kb": float(resident)}
    finally:
        tracemalloc.stop()
    first, last = held[steps // 4], held[steps]
    grown = {f"{name}_a_step": (last[name] - first[name]) / (steps - steps // 4) for name in last}
    return {"steps": steps, **last, **grown}


def main(arguments: list[str] | None = None, shape: tuple[int, int, int] = (PROMPTS, ROLLOUTS, TOKENS)) -> int:
    """Measure and print the table; returns the exit status."""
    args = parser(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    register()
    prompts, rollouts, tokens = shape
    if args.quick:
        prompts = max(1, prompts // 8)
    figures = overhead(prompts, rollouts, tokens, rounds=3 if args.quick else 7)
    figures["memory"] = memory(
        MEMORY_PROMPTS, MEMORY_ROLLOUTS, MEMORY_TOKENS, steps=MEMORY_STEPS // 5 if args.quick else MEMORY_STEPS
    )
    print(f"{prompts} prompts x {rollouts} rollouts x {tokens} tokens, {figures['rows']} rows with the corrections")
    print("ms of processor time, one thread")
    print("| part | ms |\n| --- | ---: |")
    for name in ("selection", "prompts", "rows", "estimator", "metrics"):
        print(f"| {name} | {figures['parts_ms'][name]:.1f} |")
    sums = ("overhead", "limit", "grpo_compute_advantage", "cipo_compute_advantage", "overhead_whole")
    for name in (*sums, "pairs", "pairs_limit"):
        print(f"| {name} | {figures[f'{name}_ms']:.1f} |")
    ray.init("local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    figures["coordinator_mb"] = asyncio.run(coordinator_mb(prompts, rollouts))
    ray.shutdown()
    print(f"| one prompt in a worker | {figures['prompt_in_worker_ms']:.1f} |")
    print("memory after {steps} small steps: Python {python_kb:.0f} kB, process {resident_kb:.0f} kB; grown a step: "
          "{python_kb_a_step:.2f} kB, {resident_kb_a_step:.2f} kB".format(**figures["memory"]))  # fmt: skip
    print(
        f"through the coordinator in a step: {figures['coordinator_mb']:.2f} MB beside the texts of the drawn anchors"
    )
    if args.json:
        write_json(args.json, figures)
    limit_mb = COORDINATOR_MB * prompts / shape[0]
    over = (
        figures["overhead_ms"] > figures["limit_ms"],
        figures["pairs_ms"] > figures["pairs_limit_ms"],
        figures["coordinator_mb"] > limit_mb,
    )
    return int(any(over))


if __name__ == "__main__":
    sys.exit(main())
