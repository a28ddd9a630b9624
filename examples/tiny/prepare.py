"""Make the demo's data and model from scratch, offline: word problems, and a tiny model that has learned their format.

    python examples/tiny/prepare.py --output outputs/demo/start [--seed 1] [--quick]

Writes data/train.parquet and data/val.parquet (verl's GSM8K schema), model/ (Qwen3-shaped, with its tokenizer) and
prepare.json (settings and figures). A second call with the same settings finds them there and does nothing.
--quick takes a smaller model, easier problems and fewer steps: for smoke runs, with no promise on accuracy.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

# Before torch is imported. Threads that spin while they wait slow a busy 2-core machine down many times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from examples.tiny.evaluate import INSTRUCTION, evaluate, user_message
from examples.tiny.problems import Level, Problem, sample_problem
from examples.tiny.tokenizer import build_tokenizer
from examples.tiny.warmup import Warmup, warm_up
from verl_cipo.core.prompts import TEMPLATES

TARGETS = {"pass1": (0.30, 0.60), "w2c": (0.10, 1.0), "c2c": (0.50, 1.0)}
"""What training can start from. By rounding, the warm-up ends elsewhere on another processor: runs of the demo began at
w2c .15 to .26 and c2c .59 to .73, and all learned."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of the Qwen3-shaped model. vLLM's CPU attention takes heads of 32, 64, 80, 96, 112, 128 and larger."""

    hidden: int = 128
    layers: int = 4
    inner: int = 512
    heads: int = 4
    kv_heads: int = 2
    head: int = 32


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the result follows from."""

    seed: int = 1
    train: int = 4000  # problems
    val: int = 256
    level: Level = field(default_factory=Level)
    shape: Shape = field(default_factory=Shape)
    warmup: Warmup = field(default_factory=Warmup)


FULL = Settings()
QUICK = Settings(
    train=512,
    val=64,
    level=Level(events=(2, 2), start=9, operand=5, value=30),
    shape=Shape(hidden=96, layers=3, inner=256, heads=3, kv_heads=3),
    warmup=Warmup(steps=240, rows=24, lr=1e-2, own_from=1000, look_from=200, stop_pass1=0.4, stop_w2c=0.0),
)


def sources() -> str:
    """A digest of this folder's code that the result depends on."""
    names = ("evaluate.py", "muon.py", "prepare.py", "problems.py", "tokenizer.py", "warmup.py")
    return hashlib.sha256(b"".join((Path(__file__).parent / name).read_bytes() for name in names)).hexdigest()[:16]


def draw_problems(settings: Settings) -> tuple[list[Problem], list[Problem]]:
    """Training and held-out problems, no skeleton twice; the two sides of the split share none."""
    rng = random.Random(settings.seed)
    sides = []
    for n, from_held_out in ((settings.train, False), (settings.val, True)):
        found: dict[str, Problem] = {}
        while len(found) < n:
            problem = sample_problem(rng, settings.level, from_held_out=from_held_out)
            found.setdefault(problem.skeleton, problem)
        sides.append(list(found.values()))
    return sides[0], sides[1]


def verl_rows(problems: list[Problem], split: str) -> list[dict]:
    """Rows as verl's examples/data_preprocess/gsm8k.py writes them."""
    return [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": user_message(problem)}],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": str(problem.answer)},
            "extra_info": {"split": split, "index": i, "answer": problem.solution, "question": problem.question},
        }
        for i, problem in enumerate(problems)
    ]


def make_tokenizer(template: str) -> PreTrainedTokenizerBase:
    """The same words for every seed and level; the repeated sentences are one token each."""
    rng = random.Random(0)
    problems = [sample_problem(rng, Level()) for _ in range(3000)]
    texts = ["system\nuser\nassistant\n", *(text for p in problems for text in (p.question, p.solution))]
    frame = template.replace("{attempt}", "{question}").split("{question}")
    return build_tokenizer(texts, [" " + INSTRUCTION, *filter(None, frame)])


def make_model(shape: Shape, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.inner,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            head_dim=shape.head,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            dtype="float32",
        )
    )


def prepare(output: Path, settings: Settings) -> dict:
    """Make everything under `output`, or return what is there already when it was made with the same settings."""
    started = time.monotonic()
    record = output / "prepare.json"
    made_with = {"sources": sources(), **asdict(settings)}
    made_with = json.loads(json.dumps(made_with))  # tuples become lists, as they come back from the file
    if record.exists() and json.loads(record.read_text())["settings"] == made_with:
        print(f"{output}: made before with the same settings, kept")
        return json.loads(record.read_text())
    record.unlink(missing_ok=True)
    (output / "data").mkdir(parents=True, exist_ok=True)

    train, val = draw_problems(settings)
    for problems, split in ((train, "train"), (val, "val")):
        pq.write_table(pa.Table.from_pylist(verl_rows(problems, split)), output / "data" / f"{split}.parquet")

    torch.manual_seed(settings.seed)
    template = TEMPLATES["math"]
    tokenizer = make_tokenizer(template)
    model = make_model(settings.shape, tokenizer)
    spent = warm_up(model, tokenizer, template, settings.level, settings.warmup, random.Random(settings.seed + 1))
    model.save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")

    figures = evaluate(model, tokenizer, val, template, repeats=2)
    result = {
        **figures,
        "on_target": all(low <= figures[name] <= high for name, (low, high) in TARGETS.items()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        **spent,
        "seconds": round(time.monotonic() - started, 1),
        "seed": settings.seed,
        "settings": made_with,
    }
    record.write_text(json.dumps(result, indent=2) + "\n")
    return result


def report(result: dict, quick: bool) -> str:
    """The table that the command prints."""
    lines = [f"{'held-out, sampled at temperature 1':38}value   target"]
    for name, (low, high) in TARGETS.items():
        target = f"at least {low:.2f}" if high == 1.0 else f"{low:.2f} to {high:.2f}"
        lines.append(f"{name:38}{result[name]:5.3f}   {'(quick run: not checked)' if quick else target}")
    for name in ("format", "parameters", "vocabulary", "steps", "tokens", "seconds", "seed"):
        lines.append(f"{name:38}{result[name]:,}" if name != "format" else f"{name:38}{result[name]:5.3f}")
    if not quick and not result["on_target"]:
        lines.append("The warmed-up model is outside the target range; training from it may show less.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for data, model and prepare.json")
    parser.add_argument("--seed", type=int, default=1, help="seed of problems, weights and sampling (default 1)")
    parser.add_argument("--quick", action="store_true", help="under a minute; the model need not solve much")
    args = parser.parse_args()
    settings = QUICK if args.quick else FULL
    print(report(prepare(args.output, replace(settings, seed=args.seed)), args.quick))


if __name__ == "__main__":
    main()
