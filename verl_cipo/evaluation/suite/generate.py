"""The two-turn protocol: attempts at a benchmark's problems, then a correction of each, both verified and written.

`{output}/{benchmark}/{step}.jsonl` holds the attempts as verl writes its validation dumps, with a few more columns;
`{output}/{benchmark}/corrections/{step}.jsonl` the corrections as a CIPO run writes them. A killed run goes on from
what the two files hold: each batch is on the disk before the next one is sampled.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from verl_cipo.core.config import CIPOConfig, PromptConfig
from verl_cipo.core.draws import session_seed
from verl_cipo.core.keys import RowKey
from verl_cipo.core.prompts import CorrectionPrompt, correction_prompt, strip_thinking
from verl_cipo.core.transitions import attempt_record, correction_record, is_copy
from verl_cipo.evaluation.append_log import AppendLog
from verl_cipo.evaluation.files import read_earlier, same_settings
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.output import write_json
from verl_cipo.evaluation.suite.engine import Completion, Engine
from verl_cipo.evaluation.suite.problems import Benchmark, Problem, digest
from verl_cipo.evaluation.suite.verifier import Verifier

_STEP = re.compile(r"global_step_(\d+)")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Where and how a benchmark is run.

    output: folder; step: names the files; seed: of all draws; prompt: of the correction; batch: answers sampled
    between two writes; described: what else the answers depend on, kept beside them and compared on resuming.
    """

    output: Path
    step: int
    seed: int
    prompt: PromptConfig
    batch: int
    described: dict[str, Any]


def step_of(checkpoint: str) -> int:
    """The training step in a checkpoint's path (verl's `global_step_N`), 0 where there is none."""
    found = _STEP.findall(checkpoint)
    return int(found[-1]) if found else 0


def run_benchmark(
    benchmark: Benchmark, problems: list[Problem], *, engine: Engine, verifier: Verifier, how: Generation
) -> Path:
    """Sample and verify what is not there yet. Returns the benchmark's folder.

    Raises:
        EvaluationError: the folder holds answers made with other settings; or a prompt leaves no room for max_tokens.
    """
    folder = how.output / benchmark.name
    _claim(folder / "settings.json", benchmark, problems, how)
    protocol = _Protocol(benchmark, problems, engine, verifier, how)
    attempts_file, corrections_file = folder / f"{how.step}.jsonl", folder / "corrections" / f"{how.step}.jsonl"
    with AppendLog(attempts_file, key=lambda row: row["uid"].split("_")[0], lines=benchmark.sampling.n) as attempts:
        protocol.attempt(attempts)
        if benchmark.corrections:
            with AppendLog(corrections_file, key=lambda row: f"{row['uid']}_{row['session']}") as corrections:
                protocol.correct(attempts.rows(), corrections)
    return folder


@dataclass(frozen=True)
class _Anchor:
    """An attempt that was written: its problem, the problem's place in the file, and its row in the dump."""

    index: int
    problem: Problem
    session: int
    row: dict[str, Any]


@dataclass(frozen=True)
class _Protocol:
    """The two turns of one benchmark."""

    benchmark: Benchmark
    problems: list[Problem]
    engine: Engine
    verifier: Verifier
    how: Generation

    def attempt(self, log: AppendLog) -> None:
        """Sample the problems that the log lacks, a batch of them at a time."""
        n = self.benchmark.sampling.n
        left = [(index, problem) for index, problem in enumerate(self.problems) if problem.key not in log.done]
        with tqdm(
            total=n * len(self.problems), initial=n * len(log.done), desc=f"{self.benchmark.name}: attempts"
        ) as bar:
            for batch in _batches(left, max(1, self.how.batch // n)):
                log.append(self._attempts(batch))
                bar.update(n * len(batch))

    def _attempts(self, batch: list[tuple[int, Problem]]) -> list[dict[str, Any]]:
        """n rows a problem."""
        sessions = [
            (index, problem, session) for index, problem in batch for session in range(self.benchmark.sampling.n)
        ]
        prompts = {problem.key: self._fitting_prompt(problem) for _, problem in batch}
        answers = self.engine.sample(
            [prompts[problem.key] for _, problem, _ in sessions],
            seeds=[self._seed(index, None, session) for index, _, session in sessions],
            sampling=self.benchmark.sampling,
        )
        asked = [problem for _, problem, _ in sessions]
        verified = self.verifier.judge([(problem, answer.text) for problem, answer in zip(asked, answers, strict=True)])
        return [
            # Columns that are ours stand last: where verl's dump would lose the answer to a reward function's `output`,
            # this one keeps the answer, which is then corrected.
            {
                **found.extra,
                "input": self.engine.tokenizer.decode(prompts[problem.key], skip_special_tokens=True),
                "output": answer.text,
                "gts": problem.ground_truth,
                "score": found.score,
                "step": self.how.step,
                "acc": found.correct,
                "uid": str(RowKey(problem.key, session)),
                "data_source": problem.data_source,
                "response_tokens": answer.tokens,
                "truncated": answer.truncated,
                **({} if problem.group is None else {"group": problem.group}),
                **self._on_given_response(problem, answer),
            }
            for (_, problem, session), answer, found in zip(sessions, answers, verified, strict=True)
        ]

    def correct(self, rows: Iterable[dict[str, Any]], log: AppendLog) -> None:
        """Correct the attempts that the log lacks, a batch of them at a time."""
        prompt = self._correction_prompt()
        places = {problem.key: (index, problem) for index, problem in enumerate(self.problems)}
        parts = ((row, *row["uid"].split("_")[:2]) for row in rows)
        left = (
            _Anchor(*places[key], int(session), row)
            for row, key, session in parts
            if f"{key}_{session}" not in log.done
        )
        with tqdm(
            total=self.benchmark.sampling.n * len(self.problems),
            initial=len(log.done),
            desc=f"{self.benchmark.name}: corrections",
        ) as bar:
            for batch in _batches(left, max(1, self.how.batch // self.benchmark.corrections)):
                log.append(self._records(batch, prompt))
                bar.update(len(batch))

    def _records(self, batch: list[_Anchor], prompt: CorrectionPrompt) -> list[dict[str, Any]]:
        """A record an attempt."""
        requests = [prompt.request(anchor.problem.messages, anchor.row["output"]) for anchor in batch]
        turns = [
            (anchor, request, turn)
            for anchor, (request, _) in zip(batch, requests, strict=True)
            if request is not None
            for turn in range(self.benchmark.corrections)
        ]
        answers = self.engine.sample(
            [self.engine.encode(request.messages) for _, request, _ in turns],
            seeds=[self._seed(anchor.index, anchor.session, turn) for anchor, _, turn in turns],
            sampling=self.benchmark.sampling,
        )
        verified = self.verifier.judge(
            [(anchor.problem, answer.text) for (anchor, *_), answer in zip(turns, answers, strict=True)]
        )
        made: dict[str, list[dict[str, Any]]] = {anchor.row["uid"]: [] for anchor in batch}
        for (anchor, request, _), answer, found in zip(turns, answers, verified, strict=True):
            copied = prompt.repeats(request.shown, answer.text)
            made[anchor.row["uid"]].append(
                correction_record(answer.text, correct=found.correct, score=found.score, copied=copied)
                | {"response_tokens": answer.tokens, "truncated": answer.truncated}
            )
        return [
            attempt_record(
                {
                    "uid": anchor.problem.key,
                    "raw_prompt": anchor.problem.messages,
                    "reward_model": {"ground_truth": anchor.problem.ground_truth},
                    "data_source": anchor.problem.data_source,
                },
                session=anchor.session,
                text=anchor.row["output"],
                correct=anchor.row["acc"],
                score=anchor.row["score"],
                corrections=made[anchor.row["uid"]],
            )
            | {"skipped": reason, "step": self.how.step}
            for anchor, (_, reason) in zip(batch, requests, strict=True)
        ]

    def _correction_prompt(self) -> CorrectionPrompt:
        """The prompt of training, with all the room that an answer leaves."""
        room = self.engine.max_model_len - self.benchmark.sampling.max_tokens
        prompt = correction_prompt(
            CIPOConfig(prompt=self.how.prompt.in_validation),
            self.engine.tokenizer,
            prompt_length=room,
            count_tokens=lambda messages: len(self.engine.encode(messages)),
        )
        if (least := prompt.minimum_tokens()) > room:
            raise EvaluationError(
                f"benchmark {self.benchmark.name}: a correction prompt takes {least} tokens or more, and max_model_len "
                f"- max_tokens leaves {room}: raise --engine max_model_len or lower --max-tokens"
            )
        return prompt

    def _fitting_prompt(self, problem: Problem) -> list[int]:
        prompt = self.engine.encode(problem.messages)
        if len(prompt) + self.benchmark.sampling.max_tokens > self.engine.max_model_len:
            raise EvaluationError(
                f"{problem.key}: its prompt takes {len(prompt)} tokens, which with max_tokens = "
                f"{self.benchmark.sampling.max_tokens} is more than max_model_len = {self.engine.max_model_len}: raise "
                "--engine max_model_len or lower --max-tokens"
            )
        return prompt

    def _on_given_response(self, problem: Problem, answer: Completion) -> dict[str, Any]:
        """Of a request to correct a given response: whether that was right, and whether the answer repeats it."""
        given, correct = (problem.extra_info.get(name) for name in ("response", "response_correct"))
        if given is None or correct is None or self.benchmark.verifier == "critique":
            return {}
        text, how = answer.text, self.how.prompt
        if how.attempt_view == "no_thinking":
            text = strip_thinking(text, how.thinking_open, how.thinking_close)
        if self.benchmark.verifier == "code":
            from verl_cipo.rewards.code import last_program

            text = last_program(text) or text
        return {"anchor_correct": correct, "copied": is_copy(given, text)}

    def _seed(self, index: int, anchor: int | None, session: int) -> int:
        name = f"{self.benchmark.name}/{index}"
        return session_seed(self.how.seed, step=0, validate=True, index=name, anchor=anchor, session=session)


def _claim(file: Path, benchmark: Benchmark, problems: list[Problem], how: Generation) -> None:
    """Write down what the answers are made with, or compare it with what is written there."""
    settings = {
        **how.described,
        "seed": how.seed,
        "step": how.step,
        "prompt": asdict(how.prompt.in_validation),
        "sampling": asdict(benchmark.sampling),
        "corrections": benchmark.corrections,
        "problems": digest(problems),
    }
    before = read_earlier(file, {"prompt": dict})
    if before is not None:
        # A folder of an older version was made with the defaults of the knobs that it does not name.
        before["prompt"] = asdict(PromptConfig(standalone=False)) | before["prompt"]
    write_json(file, same_settings(file.parent, settings, before))


def _batches(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    remaining = iter(items)
    while batch := list(itertools.islice(remaining, size)):
        yield batch
