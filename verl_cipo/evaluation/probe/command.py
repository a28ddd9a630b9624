"""Samples a checkpoint's attempts and corrections, and tells what they say: the work of `python -m verl_cipo.probe`."""

import argparse
import contextlib
import json
import random
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.prompts import correction_prompt
from verl_cipo.evaluation.files import check_output
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.options import at_least, real
from verl_cipo.evaluation.output import write_json
from verl_cipo.evaluation.probe import advice
from verl_cipo.evaluation.probe.advice import Step
from verl_cipo.evaluation.probe.figures import correction_tokens, probed, tokens
from verl_cipo.evaluation.probe.text import as_text
from verl_cipo.evaluation.suite.engine import Engine, VLLMEngine, model_folder
from verl_cipo.evaluation.suite.generate import Generation, run_benchmark, step_of
from verl_cipo.evaluation.suite.pairs import add_pairs, pairs, second_turn
from verl_cipo.evaluation.suite.problems import Benchmark, Problem, Sampling, problems_of, read_table
from verl_cipo.evaluation.suite.verifier import Verifier, load_function

BEYOND = 256
"""Tokens that a correction prompt takes at most beside question and attempt: the template's own, with some to spare."""
UNLIMITED = 2**31
_REMEDY = "data_prep/ and verl's examples write such files"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the probe."""
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="Hugging Face folder of the model to train")
    parser.add_argument(
        "--data", required=True, type=Path, metavar="FILE.parquet", help="training data in verl's schema"
    )
    parser.add_argument(
        "--reward",
        default="verl",
        metavar="FILE.py:FUNCTION",
        help="reward function as in custom_reward_function, also pkg://module:function (default: verl's own scorers)",
    )
    parser.add_argument("--limit", type=int, default=128, metavar="N", help="problems, drawn by the seed (default 128)")
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="attempts a problem, rollout.n (default 8)")
    parser.add_argument("--max-tokens", type=at_least(1), default=1024, help="data.max_response_length (default 1024)")
    parser.add_argument(
        "--prompt-length",
        type=at_least(1),
        metavar="N",
        help="rollout.prompt_length to sample under (default: whole attempts)",
    )
    parser.add_argument("--temperature", type=float, default=1.0, help="of training's rollouts (default 1)")
    parser.add_argument("--top-p", type=float, default=1.0, help="of training's rollouts (default 1)")
    parser.add_argument("--prompts", type=int, default=128, metavar="N", help="data.train_batch_size (default 128)")
    parser.add_argument(
        "--sequences", type=int, default=256, metavar="N", help="rollout.max_num_seqs times engines (default 256, one)"
    )
    parser.add_argument(
        "--correct-threshold", type=real, default=0.5, metavar="SCORE", help="algorithm.cipo.correct_threshold (0.5)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and the options there, too")
    parser.add_argument("--output", type=Path, metavar="DIR", help="keep all answers; a killed probe goes on from them")
    parser.add_argument("--seed", type=int, default=1, help="of all draws (default 1)")
    add_pairs(parser)
    parser.add_argument("--threads", type=int, default=4, help="answers verified at a time (default 4)")


def run(args: argparse.Namespace) -> int:
    """Sample, judge, report. Returns the exit status. Raises: EvaluationError on what cannot be probed."""
    for name, least in (("limit", 1), ("samples", 2), ("prompts", 1), ("sequences", 1), ("threads", 1)):
        if getattr(args, name) < least:
            raise EvaluationError(f"--{name} {getattr(args, name)}: expected {least} or more")
    if args.temperature == 0:
        raise EvaluationError("--temperature 0: greedy attempts do not tell what another attempt would bring")
    # Everything that can be wrong is looked at before the model is loaded.
    for option, path, folder in (("--json", args.json, False), ("--output", args.output, True)):
        if path is not None:
            check_output(option, path, folder=folder, reads=[args.data])
    benchmark = Benchmark(
        name="probe",
        file=str(args.data),
        converter="",
        verifier=args.reward,
        sampling=Sampling(n=args.samples, temperature=args.temperature, top_p=args.top_p, max_tokens=args.max_tokens),
        corrections=1,
    )
    checkpoint = model_folder(args.checkpoint)
    problems = draw_problems(args.data, limit=args.limit, seed=args.seed)
    given = pairs(args)
    how = {"kwargs": given["--reward-kwargs"], "threads": args.threads, "threshold": args.correct_threshold}
    judge = load_function(args.reward)
    verifier = Verifier(judge, **how)
    verifier.try_out(problems)
    of_programs = judge.__module__ == load_function("code").__module__
    knobs = ({"template": "code"} if of_programs else {}) | given["--prompt"]
    cipo = second_turn(knobs)
    if cipo.prompt != cipo.prompt.in_validation:
        raise EvaluationError(
            "--prompt: a second turn shows its attempt alone and says nothing of it, so verdict=told and attempts "
            "above 1 cannot be probed"
        )
    most = most_tokens(checkpoint)
    options = {
        "max_model_len": _model_len(args, checkpoint, problems, given["--chat-template"], most),
        **given["--engine"],
    }
    engine = VLLMEngine(checkpoint, options=options, template=given["--chat-template"])
    with _folder(args.output) as output:
        generation = Generation(
            output=output,
            step=step_of(args.checkpoint),
            seed=args.seed,
            prompt=cipo.prompt,
            batch=1024,
            described={name: getattr(args, name) for name in ("checkpoint", "reward", "reward_kwargs", "chat_template")}
            | {"max_model_len": engine.max_model_len, "correct_threshold": args.correct_threshold},
        )
        folder = run_benchmark(benchmark, problems, engine=engine, verifier=verifier, how=generation)
        attempts, records = (_rows(folder / part / f"{generation.step}.jsonl") for part in ("", "corrections"))
    report = tell(
        attempts, records, problems=problems, engine=engine, cipo=cipo, benchmark=benchmark, most=most,
        step=Step(prompts=args.prompts, n=args.samples, sequences=args.sequences),
    )  # fmt: skip
    if args.json is not None:
        about = {
            "checkpoint": args.checkpoint,
            "data": str(args.data),
            "reward": args.reward,
            "problems": len(problems),
        }
        write_json(args.json, about | {"sampling": asdict(benchmark.sampling)} | report)
    print(as_text(report, knobs), end="")
    return 0


def draw_problems(path: Path, *, limit: int, seed: int) -> list[Problem]:
    """`limit` problems of a parquet file, or all, drawn by the seed and in the file's order.

    Raises: EvaluationError when the file is missing, or is not in verl's schema.
    """
    if not path.is_file():
        raise EvaluationError(f"--data {path}: no such file, expected a parquet file in verl's schema; {_REMEDY}")
    table = read_table(path, remedy=_REMEDY)
    places = range(len(table))
    if limit < len(table):
        places = sorted(random.Random(seed).sample(places, limit))
    return problems_of(table, places, path, name="probe", remedy=_REMEDY)


def most_tokens(checkpoint: str) -> int | None:
    """Tokens that the model's positions allow, None where its config does not say."""
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    return config.get("text_config", config).get("max_position_embeddings")


def _model_len(
    args: argparse.Namespace, checkpoint: str, problems: list[Problem], template: dict[str, Any], most: int | None
) -> int:
    """Tokens of prompt and answer that the engine is asked for: room for every attempt, or for --prompt-length.

    vLLM's own default, all that the model takes, needs a KV cache that many machines have no memory for.
    """
    if args.prompt_length is not None:
        return args.prompt_length + args.max_tokens
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    longest = max(
        len(tokenizer.apply_chat_template(one.messages, add_generation_prompt=True, return_dict=False, **template))
        for one in problems
    )
    wanted = longest + args.max_tokens + BEYOND + args.max_tokens
    return wanted if most is None else min(wanted, most)


@contextlib.contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    """Where the answers go: the folder that was asked for, or one that goes away."""
    if output is not None:
        yield output
    else:
        with tempfile.TemporaryDirectory(prefix="verl_cipo_probe_") as folder:
            yield Path(folder)


def _rows(file: Path) -> list[dict[str, Any]]:
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def tell(
    attempts: list[dict[str, Any]],
    records: list[dict[str, Any]],
    *,
    problems: list[Problem],
    engine: Engine,
    cipo: CIPOConfig,
    benchmark: Benchmark,
    step: Step,
    most: int | None,
) -> dict[str, Any]:
    """Figures, tokens of a step, meaning and options, as the JSON file has them.

    Args:
        attempts, records: what the two turns wrote.
        cipo: with the correction prompt that was used.
        most: tokens of prompt and answer that the model takes, None where it is not known.
    """

    def count(messages: list[dict]) -> int:
        return len(engine.encode(messages))

    whole = correction_prompt(cipo, engine.tokenizer, prompt_length=UNLIMITED, count_tokens=count)
    chats = {problem.key: problem.messages for problem in problems}
    asked = correction_tokens(attempts, chats, request=lambda chat, attempt: whole.build(chat, attempt)[0], count=count)
    prompts = [count(messages) for messages in chats.values()]
    found, second = probed(
        attempts,
        records,
        n=benchmark.sampling.n,
        max_tokens=benchmark.sampling.max_tokens,
        prompts=prompts,
        corrections=list(asked.values()),
        most_tokens=most,
    )
    options = advice.recommend(found, step)
    settings = {name: value for option in options for name, value in option.settings.items()}
    rho = float(settings.get("+algorithm.cipo.rho_init", advice.DEFAULTS.rho_init))
    of_step = tokens(attempts, records, prompts=prompts, corrections=asked).of_step(step, rho)
    factor = of_step["cipo"]["sampled"] / of_step["grpo"]["sampled"] if of_step["grpo"]["sampled"] else 1.0
    length = settings.get("actor_rollout_ref.rollout.prompt_length")
    first = {name: getattr(found, name) for name in ("pass_at_1", "all_right", "all_wrong", "hard", "hard_w2c")}
    return {
        "figures": first | second,
        "prompts": {
            "plain_longest": max(prompts),
            "correction": sorted(asked.values()),
            "prompt_length": None if length is None else int(length),
            "shown_whole": None if length is None else advice.shown_whole(list(asked.values()), int(length)),
            "longest_over_mean": found.longest_over_mean,
        },
        "step": asdict(step) | {"tokens": of_step, "factor": factor},
        "meaning": advice.meaning(found, factor=factor),
        "options": [asdict(option) for option in options],
        "line": advice.line(options),
    }
