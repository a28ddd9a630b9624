"""python -m verl_cipo.evaluate --suite NAME --checkpoint DIR --output DIR: sample a suite's benchmarks and report."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from verl_cipo.evaluation.files import write_whole
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.output import for_terminal, write_json
from verl_cipo.evaluation.suite.engine import VLLMEngine, model_folder
from verl_cipo.evaluation.suite.generate import Generation, run_benchmark, step_of
from verl_cipo.evaluation.suite.pairs import add_pairs, pairs, second_turn
from verl_cipo.evaluation.suite.problems import SUITES_FILE, Benchmark, check_files, load_suite, read_problems
from verl_cipo.evaluation.suite.results import benchmark_results, markdown
from verl_cipo.evaluation.suite.verifier import Verifier, load_function

SHARED_OPTIONS = ()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of --suite."""
    parser.add_argument("--suite", required=True, metavar="NAME", help="math6, code, correction, all, or of --suites")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="Hugging Face folder")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="dumps and results go there")
    parser.add_argument("--suites", type=Path, default=SUITES_FILE, metavar="YAML", help="suites of your own")
    parser.add_argument("--data-dir", type=Path, default=Path("~/data"), help="where data_prep wrote (default ~/data)")
    parser.add_argument("--benchmarks", nargs="+", action="extend", metavar="NAME", help="only these of the suite")
    parser.add_argument("--limit", type=int, metavar="N", help="the first N problems of each benchmark")
    parser.add_argument("--samples", type=int, metavar="N", help="attempts a problem, in place of the suite's")
    parser.add_argument("--temperature", type=float, help="in place of the suite's")
    parser.add_argument("--top-p", type=float, help="in place of the suite's")
    parser.add_argument("--max-tokens", type=int, help="of an answer, in place of the suite's")
    parser.add_argument("--corrections", type=int, metavar="N", help="second turns an attempt, in place of the suite's")
    parser.add_argument("--seed", type=int, default=1, help="of all draws (default 1)")
    parser.add_argument("--batch", type=int, default=1024, help="answers sampled between two writes (default 1024)")
    parser.add_argument("--reward", metavar="FILE.py:FUNCTION", help="a reward function in place of the benchmark's")
    add_pairs(parser)
    parser.add_argument("--threads", type=int, default=4, help="answers verified at a time (default 4)")


def run(args: argparse.Namespace) -> int:
    """Run a suite; args.output is a folder. Returns the exit status."""
    for name in ("limit", "batch", "threads"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise EvaluationError(f"--{name} {value}: expected 1 or more")
    benchmarks = [_with_options(benchmark, args) for benchmark in _chosen(args)]
    # Everything that can be wrong is looked at before the model is loaded.
    check_files(benchmarks, args.data_dir)
    problems = {one.name: read_problems(one, args.data_dir, limit=args.limit) for one in benchmarks}
    given = pairs(args)
    kwargs = given["--reward-kwargs"]
    verifiers = {
        one.name: Verifier(load_function(args.reward or one.verifier), kwargs=kwargs, threads=args.threads)
        for one in benchmarks
    }
    hows = {one.name: _how(one, args, given) for one in benchmarks}
    checkpoint = model_folder(args.checkpoint)
    engine = VLLMEngine(checkpoint, options=given["--engine"], template=given["--chat-template"])
    output = args.output
    results = {}
    for one in benchmarks:
        how = hows[one.name]
        folder = run_benchmark(one, problems[one.name], engine=engine, verifier=verifiers[one.name], how=how)
        results[one.name] = benchmark_results(one, folder, how.step)
        # After each benchmark: hours of work can be looked at before all is done.
        write_json(output / "results.json", {"checkpoint": args.checkpoint, "benchmarks": results})
        write_whole(output / "results.md", markdown(results))
    print(for_terminal(markdown(results)), end="")
    print(f"{output / 'results.json'}, {output / 'results.md'}")
    return 0


def _chosen(args: argparse.Namespace) -> list[Benchmark]:
    suite = load_suite(args.suite, args.suites)
    if not args.benchmarks:
        return suite
    known = {one.name: one for one in suite}
    if unknown := [name for name in args.benchmarks if name not in known]:
        raise EvaluationError(
            f"--benchmarks {' '.join(unknown)}: not in suite {args.suite}, which has {', '.join(known)}"
        )
    return [known[name] for name in args.benchmarks]


def _with_options(benchmark: Benchmark, args: argparse.Namespace) -> Benchmark:
    given = {"n": args.samples, "temperature": args.temperature, "top_p": args.top_p, "max_tokens": args.max_tokens}
    sampling = replace(benchmark.sampling, **{name: value for name, value in given.items() if value is not None})
    corrections = benchmark.corrections if args.corrections is None else args.corrections
    if corrections < 0:
        raise EvaluationError(f"--corrections {corrections}: expected 0 or more")
    return replace(benchmark, sampling=sampling, corrections=corrections)


def _how(benchmark: Benchmark, args: argparse.Namespace, given: dict[str, dict[str, Any]]) -> Generation:
    template = "code" if benchmark.verifier == "code" else "math"
    cipo = second_turn({"template": template, **given["--prompt"]})
    return Generation(
        output=args.output,
        step=step_of(args.checkpoint),
        seed=args.seed,
        prompt=cipo.prompt,
        batch=args.batch,
        described={
            "checkpoint": args.checkpoint,
            "verifier": args.reward or benchmark.verifier,
            "reward_kwargs": given["--reward-kwargs"],
            "engine": given["--engine"],
            "chat_template": given["--chat-template"],
        },
    )
