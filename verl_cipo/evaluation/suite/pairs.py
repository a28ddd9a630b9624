"""Options of the commands that sample, which take KEY=VALUE."""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import yaml

from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.prompts import with_text
from verl_cipo.evaluation.jsonl import EvaluationError

PAIRS = {
    "--prompt": "fields of algorithm.cipo.prompt as in training; the template's default is the verifier's",
    "--engine": "arguments of vllm.LLM: tensor_parallel_size=2",
    "--chat-template": "its arguments: enable_thinking=false",
    "--reward-kwargs": "keyword arguments of the reward function",
}


def add_pairs(parser: argparse.ArgumentParser, options: Iterable[str] = PAIRS) -> None:
    """Those `options` of PAIRS."""
    for option in options:
        parser.add_argument(option, nargs="+", action="extend", default=[], metavar="KEY=VALUE", help=PAIRS[option])


def pairs(args: argparse.Namespace, options: Iterable[str] = PAIRS) -> dict[str, dict[str, Any]]:
    """What each of `options` was given, by its name; values are read as YAML. Raises: EvaluationError on others."""
    return {option: _read(option, args) for option in options}


def second_turn(knobs: Mapping[str, Any]) -> CIPOConfig:
    """A config whose prompt has `knobs`, and the defaults of training. Raises: CIPOConfigError on what it cannot be."""
    # Wrong anchors alone: a prompt that calls them wrong goes with these.
    cipo = CIPOConfig.from_mapping({"rho_adaptive": False, "rho_init": 0, "prompt": dict(knobs)})
    return replace(cipo, prompt=with_text(cipo.prompt))


def _read(option: str, args: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for text in getattr(args, option.removeprefix("--").replace("-", "_")):
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise EvaluationError(f"{option} {text}: expected KEY=VALUE")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise EvaluationError(f"{option} {text}: the value is not YAML ({' '.join(str(error).split())})") from error
    return found
