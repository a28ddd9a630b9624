"""Questions with pictures through verl, vLLM's CPU build and FSDP2; tests/pictures.py makes model and data.

Nightly: it takes what requirements/vision.txt names.
"""

import pytest

from tests import pictures
from tests.conftest import ROOT
from tests.real.conftest import PROMPTS, STEPS, N, Run, streams, train

pytestmark = [pytest.mark.real, pytest.mark.nightly, pictures.needs_vision]


@pytest.fixture(scope="module")
def colors_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colors")
    pictures.make_model_folder(folder / "model", steps=120)
    (folder / "data").mkdir()
    pictures.write_rows(folder / "data" / "train.parquet", 8, texts_too=True)
    pictures.write_rows(folder / "data" / "val.parquet", 8)
    return folder


@pytest.fixture(scope="module")
def colors_run(colors_folder, tmp_path_factory, cluster) -> Run:
    return train(
        colors_folder,
        tmp_path_factory.mktemp("colors_run"),
        "algorithm.adv_estimator=cipo",
        # With verl's default, dummy, vLLM 0.28 fills what it normalizes pictures by with noise, and no weight sync
        # brings it back.
        "actor_rollout_ref.rollout.load_format=auto",
        f"reward.custom_reward_function.path={ROOT / 'tests' / 'pictures.py'}",
        "reward.custom_reward_function.name=compute_score",
        "+algorithm.cipo.schedule=barrier",
        "+algorithm.cipo.source=both",
        "+algorithm.cipo.aux.coef=0.5",
        "+algorithm.cipo.transfer.kind=regress",
        "+algorithm.cipo.transfer.below=1",
        "+algorithm.cipo.val_corrections=1",
        f"trainer.save_freq={STEPS}",
        cluster=cluster,
    )


def test_corrections_are_rolled_out_with_their_pictures(colors_run):
    for step, metrics in enumerate(colors_run.steps, 1):
        assert metrics["cipo/anchors/total"] == PROMPTS and metrics["cipo/anchors/skipped/no_text_question"] == 0
        assert metrics["cipo/rows/correction"] == PROMPTS * N and metrics["cipo/corrections/failed_sessions"] == 0
        _, corrections, _ = streams(colors_run.rollouts(step))
        assert len(corrections) == PROMPTS


def test_the_engine_saw_what_is_trained(colors_run):
    """vLLM and the actor agree on every token of attempts and corrections, pictures and all.

    Up to 3e-4 was seen, where text has 3e-6: vLLM normalizes pictures in the model, and multiplies where the actor has
    a convolution. With pictures of noise it was 0.76.
    """
    for metrics in colors_run.steps:
        assert metrics["training/rollout_probs_diff_max"] < 1e-3


def test_appended_rows_are_trained(colors_run):
    moved = sum(metrics["cipo/transfer/rows"] for metrics in colors_run.steps)
    assert moved > 0 and sum(metrics["cipo/aux/pairs"] for metrics in colors_run.steps) > 0
    for metrics in colors_run.steps:
        assert metrics["cipo/aux/skipped/no_text_question"] == metrics["cipo/transfer/skipped/no_text_question"] == 0
