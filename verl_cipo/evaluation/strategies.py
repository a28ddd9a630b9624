"""Strategies for problems, sampled from a checkpoint: the work of `python -m verl_cipo.contexts`."""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from verl_cipo.core.contents import last_question
from verl_cipo.core.draws import session_seed
from verl_cipo.core.prompts import fill, strip_thinking
from verl_cipo.evaluation.files import check_output, write_whole
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.suite.engine import Completion, Engine, VLLMEngine, model_folder
from verl_cipo.evaluation.suite.pairs import add_pairs, pairs
from verl_cipo.evaluation.suite.problems import Sampling, read_table

REQUEST = """{question}

Name one strategy for this problem in one short sentence, as advice to somebody who is about to solve it. Name no \
numbers of the answer, and do not solve the problem."""
OPTIONS = ("--engine", "--chat-template")
AT_ONCE = 1024
"""Strategies sampled at once."""
_REMEDY = "data_prep/ and verl's examples write such files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="Hugging Face folder of the model to train")
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE.parquet", help="training data in verl's schema"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.parquet", help="the same with the column")
    parser.add_argument("-n", type=int, default=4, metavar="N", help="strategies sampled a problem (default 4)")
    parser.add_argument("--column", default="contexts", metavar="NAME", help="of the strategies (default contexts)")
    parser.add_argument(
        "--request", default=REQUEST, metavar="TEXT", help="what is asked, with {question} once (default: a sentence)"
    )
    parser.add_argument("--max-tokens", type=int, default=256, help="of a strategy, thinking included (default 256)")
    parser.add_argument("--temperature", type=float, default=1.0, help="default 1")
    parser.add_argument("--top-p", type=float, default=1.0, help="default 1")
    parser.add_argument("--seed", type=int, default=1, help="of all draws (default 1)")
    add_pairs(parser, OPTIONS)


def run(args: argparse.Namespace) -> int:
    """Sample, write, tell. Returns the exit status. Raises: EvaluationError on what cannot be done."""
    for name in ("n", "max_tokens"):
        if getattr(args, name) < 1:
            raise EvaluationError(
                f"-{'-' * (name != 'n')}{name.replace('_', '-')} {getattr(args, name)}: expected >= 1"
            )
    if args.request.count("{question}") != 1:
        raise EvaluationError(f"--request {args.request!r}: expected a text that holds {{question}} once")
    check_output("--output", args.output, reads=[args.data])
    if not args.data.is_file():
        raise EvaluationError(f"--data {args.data}: no such file, expected a parquet file in verl's schema; {_REMEDY}")
    checkpoint, given = model_folder(args.checkpoint), pairs(args, OPTIONS)
    table = read_table(args.data, remedy=_REMEDY)
    if args.column in table.column_names:
        raise EvaluationError(f"--column {args.column}: {args.data} has such a column, give another name")
    chats = [asked(messages, args.request) for messages in table.column("prompt").to_pylist()]
    if not any(chats):
        raise EvaluationError(f"{args.data}: no row has a text question; {_REMEDY}")
    sampling = Sampling(n=args.n, temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_tokens)
    engine = VLLMEngine(checkpoint, options=given["--engine"], template=given["--chat-template"])
    found, kept = strategies(chats, engine, sampling=sampling, seed=args.seed)
    write(table, found, args.output, column=args.column)
    print(summary(found, kept, args))
    return 0


def asked(messages: Any, request: str) -> list[dict] | None:
    """The chat that asks for a strategy; None where the last message of the user is no text."""
    found = last_question(messages or ())
    if found is None or not isinstance(question := found[1], str):
        return None
    chat = [dict(message) for message in messages[: found[0] + 1]]
    chat[-1]["content"] = fill(request, question=question)
    return chat


def strategies(
    chats: Sequence[list[dict] | None], engine: Engine, *, sampling: Sampling, seed: int
) -> tuple[list[list[str]], int]:
    """The strategies of each row, without repetitions, and how many were sampled that gave one.

    A row without a chat has none, nor has one whose chat with `sampling.max_tokens` is longer than the engine takes.
    """
    fits: dict[int, list[int]] = {}
    for row, chat in enumerate(chats):
        if chat is not None and len(prompt := engine.encode(chat)) + sampling.max_tokens <= engine.max_model_len:
            fits[row] = prompt
    if not fits:
        raise EvaluationError(
            f"no question with --max-tokens {sampling.max_tokens} fits into the {engine.max_model_len} tokens of the "
            "engine: lower --max-tokens or raise --engine max_model_len"
        )
    found: list[list[str]] = [[] for _ in chats]
    kept = 0
    rows = list(fits)
    for at in range(0, len(rows), max(1, AT_ONCE // sampling.n)):
        sessions = [(row, i) for row in rows[at : at + max(1, AT_ONCE // sampling.n)] for i in range(sampling.n)]
        answers = engine.sample(
            [fits[row] for row, _ in sessions],
            seeds=[
                session_seed(seed, step=0, validate=False, index=f"contexts-{row}", anchor=None, session=i)
                for row, i in sessions
            ],
            sampling=sampling,
        )
        for (row, _), answer in zip(sessions, answers, strict=True):
            if (text := strategy(answer)) is not None:
                kept += 1
                if text not in found[row]:
                    found[row].append(text)
    return found, kept


def strategy(answer: Completion) -> str | None:
    """The first line of what was said after thinking; None where there is none, or the answer was cut off."""
    lines = [line.strip() for line in strip_thinking(answer.text).splitlines() if line.strip()]
    return lines[0] if lines and not answer.truncated else None


def write(table: Any, found: list[list[str]], output: Path, *, column: str) -> None:
    """The table of pyarrow with the column, as parquet; whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = io.BytesIO()
    pq.write_table(table.append_column(column, pa.array(found, type=pa.list_(pa.string()))), content)
    write_whole(output, content.getvalue())


def summary(found: list[list[str]], kept: int, args: argparse.Namespace) -> str:
    """What was written, some of it, and how to train with it."""
    have = [own for own in found if own]
    sampled = args.n * len(found)
    lines = [
        f"{args.output}: {len(have)} of {len(found)} rows have strategies, {sum(map(len, have))} different ones; "
        f"{kept} of {sampled} that were asked for were usable",
        *(f"    {own[0]}" for own in have[:3]),
        f"train with data.train_files={args.output} +algorithm.cipo.nudge.contexts={args.column}",
    ]
    return "\n".join(lines)
