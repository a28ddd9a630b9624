"""verl's checkpoints: where they lie, what is written last, which one a run goes on from."""

from types import SimpleNamespace

import pytest
import torch

from tests.contracts.support.seams import check_accepts, load, seam

BASE = "verl.trainer.ppo.v1:PPOTrainer"
TRAINER, STATE = "verl_cipo/integration/train/trainer.py", "verl_cipo/integration/train/checkpoint.py"
LAUNCH = "verl_cipo/integration/cpu/launch.py"
TRACKER = "latest_checkpointed_iteration.txt"


@pytest.fixture
def trainer(config, tmp_path):
    config.trainer.default_local_dir = str(tmp_path)
    calls = []
    return SimpleNamespace(
        config=config,
        calls=calls,
        global_steps=7,
        trainer_mode="sync",
        use_critic=False,
        actor_rollout_wg=SimpleNamespace(
            save_checkpoint=lambda path, *_, **__: calls.append((path, (tmp_path / TRACKER).exists())),
            load_checkpoint=lambda local_path, **_: calls.append(local_path),
        ),
        train_dataloader=SimpleNamespace(state_dict=lambda: {"position": 3}, load_state_dict=calls.append),
        checkpoint_callback=SimpleNamespace(on_save=lambda **_: None),
    )


@seam("PPOTrainer._save_checkpoint", TRAINER, STATE, LAUNCH)
def test_the_checkpoint_is_named_as_the_newest_after_all_of_it_is_written(trainer, tmp_path):
    """cipo.json is written before verl saves: a run that is killed while it saves goes on from the one before."""
    load(f"{BASE}._save_checkpoint")(trainer)
    assert trainer.calls == [(str(tmp_path / "global_step_7" / "actor"), False)]
    assert torch.load(tmp_path / "global_step_7" / "data.pt", weights_only=False) == {"position": 3}
    assert (tmp_path / TRACKER).read_text() == "7"


@seam("PPOTrainer._load_checkpoint, resume_mode", TRAINER, LAUNCH)
@pytest.mark.parametrize("mode", ["resume_path", "auto"])
def test_a_run_goes_on_from_the_step_of_the_folder(trainer, tmp_path, mode):
    (tmp_path / "global_step_7").mkdir()
    (tmp_path / TRACKER).write_text("7")
    trainer.config.trainer.resume_mode = mode
    trainer.config.trainer.resume_from_path = str(tmp_path / "global_step_7") if mode == "resume_path" else None
    load(f"{BASE}._load_checkpoint")(trainer)
    assert trainer.global_steps == 7 and trainer.calls == [str(tmp_path / "global_step_7" / "actor")]


@seam("PPOTrainer._load_checkpoint, no checkpoint", TRAINER)
@pytest.mark.parametrize("mode", ["disable", "auto"])
def test_a_run_without_a_checkpoint_is_at_step_0(trainer, mode):
    """By which CIPO knows that there is no state of its own to load."""
    trainer.config.trainer.resume_mode = mode
    load(f"{BASE}._load_checkpoint")(trainer)
    assert trainer.global_steps == 0 and trainer.calls == []


@seam("checkpoint_manager.find_latest_ckpt_path", TRAINER)
def test_the_newest_checkpoint_is_found_by_the_tracker(tmp_path):
    find = load("verl.utils.checkpoint.checkpoint_manager:find_latest_ckpt_path")
    assert find(str(tmp_path)) is None
    for step in (3, 12):
        (tmp_path / f"global_step_{step}").mkdir()
    (tmp_path / TRACKER).write_text("3")
    assert find(str(tmp_path)) == str(tmp_path / "global_step_3")


@seam("PPOTrainer._save_checkpoint, asynchronous modes", "verl_cipo/integration/rollout/coordinator.py")
def test_prompts_in_flight_are_in_the_checkpoint(trainer, monkeypatch, tmp_path):
    """An anchor whose corrections are under way goes back into the pool, since its host is dispatched again."""
    saved = []
    check_accepts("transfer_queue:save_checkpoint", "metadata")
    monkeypatch.setattr("transfer_queue.save_checkpoint", lambda path, **_: saved.append(path))
    # verl 0.9.0 asks first whether this TransferQueue can do it.
    monkeypatch.setattr("transfer_queue.load_checkpoint", saved.append)
    trainer.trainer_mode = "colocate_async"
    load(f"{BASE}._save_checkpoint")(trainer)
    assert saved == [str(tmp_path / "global_step_7" / "transfer_queue")]
