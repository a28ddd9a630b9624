"""Generation phases with real Ray, TransferQueue and vLLM on the CPU; used by schedule.py. See trainer.py."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.generation import draws, plugin
from benchmarks.generation.arms import ARMS
from benchmarks.generation.settings import Vllm
from examples.tiny import prepare
from verl_cipo.core.prompts import TEMPLATES
from verl_cipo.integration.cpu import launch

ROOT = Path(__file__).resolve().parents[2]


def measure(folder: Path, setting: Vllm) -> dict[str, list[dict]]:
    """Run verl in ``folder``; arm -> its timed phases in order, each with seconds, rows and tokens.

    The model has random weights: lengths and verdicts are drawn, and what it says does not matter.
    """
    settings = prepare.QUICK
    tokenizer = prepare.make_tokenizer(TEMPLATES["math"])
    tokenizer.save_pretrained(folder / "model")
    prepare.make_model(settings.shape, tokenizer).save_pretrained(folder / "model")
    (folder / "data").mkdir()
    for problems, split in zip(prepare.draw_problems(settings), ("train", "val"), strict=True):
        rows = prepare.verl_rows(problems, split)
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}.parquet")
    figures = folder / "phases.jsonl"
    launch.train(
        [
            *setting.options(folder, phases=len(ARMS), seed=setting.seed),
            "algorithm.adv_estimator=grpo",
            f"trainer.v1.trainer_mode=${{{plugin.RESOLVER}:}}",
            f"actor_rollout_ref.rollout.max_num_seqs={setting.max_seqs}",
            f"reward.custom_reward_function.path={Path(draws.__file__)}",
            f"reward.custom_reward_function.name={draws.verdict.__name__}",
            "trainer.val_before_train=false",
            "trainer.total_epochs=1000",
            f"+generation.rounds={setting.rounds}",
            f"+generation.output={figures}",
            f"+generation.max_attempt_tokens={json.dumps(setting.max_attempt_tokens)}",
        ],
        output=folder / "run",
        env={"VERL_USE_EXTERNAL_MODULES": plugin.__name__, "PYTHONPATH": str(ROOT)},
        timeout=3600,
    )
    phases = [json.loads(line) for line in figures.read_text().splitlines()]
    return {arm: [phase for phase in phases if phase["arm"] == arm and phase["round"] > 0] for arm in ARMS}
