"""How fast CIPO's advantages are beside verl's GRPO, on the same rows, and how far apart.

    python benchmarks/estimator.py --json outputs/estimator.json       # 1k, 4k and 16k rows x 4k tokens, 6 GB
    python benchmarks/estimator.py --quick

Groups of 8 attempts without corrections, so that both compute the same. Two levels:

trainer: verl's compute_advantage_for_multi_trajectories with the batch that its V1 trainer hands it, as it calls GRPO
and CIPO. For GRPO it copies the final rows of all sessions and broadcasts their advantages; CIPO's estimator knows
sessions itself.
function: the two estimators alone, on a batch where every row is a session.

floor: the least that a (rows, tokens) result takes on this machine, its share of the columns above: the inputs are read
once (summed) and new memory is written once, from numpy, which asks for huge pages. floor_product is the product
per_row[:, None] * mask in torch, with which verl's estimator ends.
On virtual machines see the note in driver.py: floor then is far above floor_product, where it should be far below.
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage
from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

from benchmarks.common import batch_of, lengths_of, milliseconds, parser, token_fields
from benchmarks.json_file import write_json
from verl_cipo.core.config import CIPOConfig
from verl_cipo.core.keys import RowKey
from verl_cipo.core.rows import Mark, RowTable
from verl_cipo.integration.train.estimator import NAME, BatchRows, compute_cipo_advantage, register, rows_of_batch

SIZES, TOKENS, GROUP = (1024, 4096, 16384), 4096, 8
ALGORITHM = OmegaConf.create({"norm_adv_by_std_in_grpo": True})
COLUMNS = ("verl_ms", "cipo_ms", "speedup")


def measure(n: int, tokens: int, *, rounds: int) -> dict:
    """Both levels and the floor for ``n`` rows; ``max_difference`` is over all advantages.

    Raises: RuntimeError when the two differ by more than 1e-6.
    """
    rng = np.random.default_rng(0)
    fields = token_fields(rng.integers(0, 2, size=n), lengths_of(n, tokens, rng))
    rewards, mask = fields["token_level_rewards"], fields["response_mask"]
    # What else the V1 trainer has fetched by then; the rewards stand in its batch under three names.
    held = fields | {"rm_scores": rewards, "token_level_scores": rewards}
    held |= {name: torch.zeros(rewards.shape) for name in ("rollout_log_probs", "old_log_probs")}
    uid = np.array([f"{i // GROUP:032x}" for i in range(n)], dtype=object)
    keys = [str(RowKey(name, i % GROUP)) for i, name in enumerate(uid)]
    nothing = np.zeros(n)
    table = RowTable.of_marks(keys, [Mark(correct=False)] * n, index=[0] * n, scores=nothing, tokens=nothing)

    def in_trainer(adv_estimator: str) -> torch.Tensor:
        data = compute_advantage_for_multi_trajectories(
            batch_of(held, uid), batch_keys=keys, adv_estimator=adv_estimator, config=ALGORITHM
        )
        return data.batch["advantages"]

    verl = partial(compute_grpo_outcome_advantage, rewards, mask, uid)
    cipo = partial(compute_cipo_advantage, rewards, mask, ALGORITHM)

    def floor() -> np.ndarray:
        rewards.sum(dim=-1), mask.sum(dim=-1)
        result = np.empty(rewards.shape, dtype=np.float32)
        result.fill(1)
        return result

    with rows_of_batch(BatchRows(rows=table.rows, config=CIPOConfig(), loss_agg_mode="token-mean")):
        apart = float((verl()[0] - cipo()[0]).abs().max())
        apart = max(apart, float((in_trainer("grpo") - in_trainer(NAME)).abs().max()))
        if apart > 1e-6:
            raise RuntimeError(f"{n} rows: GRPO's and CIPO's advantages differ by {apart}, more than 1e-6")
        function = milliseconds({"verl_ms": verl, "cipo_ms": cipo}, rounds=rounds)
        trainer = milliseconds(
            {"verl_ms": partial(in_trainer, "grpo"), "cipo_ms": partial(in_trainer, NAME)}, rounds=rounds
        )
    column = torch.rand(n, 1)
    least = milliseconds({"floor_ms": floor, "floor_product_ms": lambda: column * mask}, rounds=rounds)
    for level in (trainer, function):
        level["speedup"] = level["verl_ms"] / level["cipo_ms"]
    return {"trainer": trainer, "function": function, **least, "max_difference": apart}


def main(arguments: list[str] | None = None, sizes: tuple[int, ...] = SIZES, tokens: int = TOKENS) -> int:
    """Measure and print the table; returns the exit status."""
    args = parser(__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    register()
    rounds = 3 if args.quick else 11
    figures = {str(n): measure(n, tokens, rounds=rounds) for n in sizes}
    print(f"ms of processor time, median of {rounds} rounds, {tokens} tokens, one thread, int64 masks")
    print("| rows | trainer: verl | CIPO | times as fast | function: verl | CIPO | times as fast | floor | product |")
    print("| ---: |" + " ---: |" * 8)
    for n, figure in figures.items():
        cells = [figure[level][name] for level in ("trainer", "function") for name in COLUMNS]
        cells += [figure["floor_ms"], figure["floor_product_ms"]]
        print(f"| {n} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
    print(f"largest difference of an advantage: {max(figure['max_difference'] for figure in figures.values()):.1g}")
    if args.json:
        write_json(args.json, {"tokens": tokens, "rounds": rounds, "threads": 1, "rows": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
