"""verl's V1 trainers: the methods that CIPO's trainers override or call, and the order of a step and of a run."""

import functools
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta

from tests.contracts.support.seams import calls_in_order, check_parameters, load, seam

BASE = "verl.trainer.ppo.v1:PPOTrainer"
TRAINER = "verl_cipo/integration/train/trainer.py"
OVERRIDDEN = {
    "__init__": ["config"],
    "_build_replay_buffer": [],
    "_init_tokenizer": [],
    "on_init_end": [],
    "fit": ["agent_loop_manager"],
    "step": ["metrics", "timing_raw"],
    "_balance_batch": ["batch", "metrics", "logging_prefix", "keep_minibatch"],
    "_get_required_batch_multiple": ["dp_size"],
    "_update_actor": ["batch", "metrics"],
    "_compute_advantage": ["batch", "metrics"],
    "_validate": [],
    "_maybe_log_val_generations": ["inputs", "outputs", "scores"],
    "_save_checkpoint": [],
    "_load_checkpoint": [],
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=seam(f"PPOTrainer.{name}", TRAINER)) for name in OVERRIDDEN])
def test_an_overridden_method_keeps_its_parameters(name):
    check_parameters(f"{BASE}.{name}", OVERRIDDEN[name])


OWN = {
    "PPOTrainerSync": {"on_init_end"},
    "PPOTrainerColocateAsync": {"on_init_end"},
    "PPOTrainerSeparateAsync": {"__init__", "on_init_end"},
}


@pytest.mark.parametrize("cls", [pytest.param(cls, marks=seam(f"{cls}, its own methods", TRAINER)) for cls in OWN])
def test_a_modes_trainer_overrides_what_it_did_of_what_cipo_overrides(cls):
    """CIPO's methods come first and call on: what a mode adds to them must be known to fit."""
    own = set(OVERRIDDEN) & set(vars(load(f"verl.trainer.ppo.v1:{cls}")))
    assert own == OWN[cls], f"{cls} itself defines {sorted(own)} of CIPO's methods, it was {sorted(OWN[cls])}"
    assert issubclass(load(f"verl.trainer.ppo.v1:{cls}"), load(BASE))


class Recorder:
    """A trainer whose methods only say that they were called."""

    def __init__(self, config, names=(), **attributes):
        self.config, self.log = config, []
        for name in names:
            setattr(self, name, functools.partial(self.record, name))
        self.__dict__.update(attributes)

    def record(self, name, batch=None, **_):
        self.log.append(name)
        return batch


@seam("PPOTrainer._step_once", TRAINER, "verl_cipo/integration/train/aux.py")
def test_an_update_balances_then_scores_then_computes_advantages_then_trains(config):
    """Rows may be appended in _balance_batch because all log-probabilities come after it, and weights after those."""
    names = (
        *("on_sample_begin", "on_sample_end", "_balance_batch", "_compute_old_log_prob", "_compute_ref_log_prob"),
        *("_compute_advantage", "_update_actor"),
    )
    sampled = KVBatchMeta(partition_id="train", keys=["a_0_0"], tags=[{}])
    trainer = Recorder(
        config,
        names,
        replay_buffer=SimpleNamespace(sample=lambda **_: (sampled, {"seen": 1.0})),
        reward_loop_manager=SimpleNamespace(reward_loop_worker_handles=[]),
        use_reference_policy=True,
        use_critic=False,
        global_steps=1,
    )
    metrics = {}
    assert load(f"{BASE}._step_once")(trainer, metrics, {}, 1) is sampled, "an update no longer returns its batch"
    assert tuple(trainer.log) == names, f"the order of an update is {trainer.log}"
    assert metrics == {"seen": 1.0}


@seam("PPOTrainer.step", TRAINER)
def test_a_step_joins_its_updates_and_averages_their_metrics(config):
    """CIPO reads the tags of all updates, and pops its own metric out of the averaged ones."""
    config.data.train_batch_size = 4

    def update(metrics, timing_raw, sample_batch_size):
        trainer.sizes.append(sample_batch_size)
        metrics["actor/cipo_aux_loss"] = float(len(trainer.sizes))
        key = f"a_{len(trainer.sizes)}_0"
        return KVBatchMeta(partition_id="train", keys=[key], tags=[{"is_padding": False, "key": key}])

    # verl 0.9.1 dispatches new prompts in prepare_step, 0.9.0 by the other.
    dispatch = {"prepare_step": lambda: {}, "_add_batch_to_generate": lambda: None}
    trainer = Recorder(config, parameter_sync_step=2, sizes=[], _step_once=update, **dispatch)
    metrics = {}
    batch = load(f"{BASE}.step")(trainer, metrics, {})
    assert trainer.sizes == [2, 2], "train_batch_size // parameter_sync_step prompts an update"
    assert batch.keys == ["a_1_0", "a_2_0"] and batch.partition_id == "train"
    assert [tag["key"] for tag in batch.tags] == batch.keys, "a row's tag is not beside its key"
    assert metrics["actor/cipo_aux_loss"] == pytest.approx(1.5)


@seam("PPOTrainer.__init__", TRAINER, "verl_cipo/integration/dry_run.py")
def test_the_constructor_takes_mode_and_updates_a_step_from_the_config(config):
    """CIPO's trainers put verl's mode into the config before; the buffer is chosen by it."""
    config.trainer.v1.trainer_mode = "separate_async"
    config.trainer.v1.separate_async.parameter_sync_step = 3
    trainer = load("verl.trainer.ppo.v1:PPOTrainerSync")(config)
    assert trainer.config is config
    assert trainer.trainer_mode == "separate_async" and trainer.parameter_sync_step == 3
    assert type(trainer.replay_buffer).__name__ == "ReplayBufferAsync"
    assert trainer.use_reference_policy is False


@seam("PPOTrainerSeparateAsync.__init__", "verl_cipo/integration/dry_run.py")
def test_preconditions_are_checked_before_the_base_constructor_is_called(config):
    """The dry run puts a class before PPOTrainer that stops there."""
    separate = load("verl.trainer.ppo.v1:PPOTrainerSeparateAsync")

    class Stop(load(BASE)):
        def __init__(self, config):
            raise InterruptedError

    probe = type("Probe", (separate, Stop), {})
    rollout = config.actor_rollout_ref.rollout
    config.data.train_batch_size = config.actor_rollout_ref.actor.ppo_mini_batch_size
    config.trainer.v1.separate_async.parameter_sync_step = 1
    rollout.nnodes, rollout.n_gpus_per_node, rollout.checkpoint_engine.backend = 1, 1, "nccl"
    with pytest.raises(InterruptedError):
        probe(config)
    rollout.checkpoint_engine.backend = "naive"
    with pytest.raises(AssertionError):
        probe(config)


@seam("PPOTrainer.init, _setup", TRAINER)
def test_the_tokenizer_comes_first_and_the_hook_of_the_loss_after_workers_and_checkpoint():
    calls_in_order(f"{BASE}.init", "_setup", "on_init_end")
    calls_in_order(
        f"{BASE}._setup",
        *("_init_tokenizer", "_init_dataloader", "actor_rollout_wg", "init_model", "_load_checkpoint"),
    )


@seam("PPOTrainer._init_tokenizer", TRAINER, "verl_cipo/integration/lengths.py")
def test_the_tokenizer_is_that_of_the_models_dataclass(monkeypatch):
    made = SimpleNamespace(tokenizer="tokenizer", processor=None)
    monkeypatch.setattr(load("verl.trainer.ppo.v1.trainer_base"), "omega_conf_to_dataclass", lambda node: made)
    trainer = SimpleNamespace(config=OmegaConf.create({"actor_rollout_ref": {"model": {}}}))
    load(f"{BASE}._init_tokenizer")(trainer)
    assert trainer.tokenizer == "tokenizer"


@seam("PPOTrainer.fit", TRAINER)
def test_a_run_keeps_the_manager_validates_steps_saves_and_logs_in_this_order():
    calls_in_order(f"{BASE}.fit", "agent_loop_manager", "_validate", "step", "_save_checkpoint", "_compute_metrics")
    calls_in_order(f"{BASE}.fit", "step", "_compute_metrics", "_log_rollout_data", "kv_clear")


@seam("PPOTrainer.fit, on_step_end", "verl_cipo/integration/rollout/manager.py")
def test_rho_is_set_before_the_next_prompts_are_dispatched():
    """CIPO sets rho at the end of step(), and verl's trainers dispatch when they sample."""
    calls_in_order(f"{BASE}.fit", "step", "on_step_end")


@seam("PPOTrainer._reissue_inflight_prompts", "verl_cipo/integration/rollout/worker.py")
def test_reissued_prompts_lose_their_corrections_with_their_attempts(store):
    """After a resume in an asynchronous mode, prompts in flight are rolled out anew."""
    store.put("a", {"is_prompt": True, "status": "running"}, uid="a")
    store.put("b", {"is_prompt": True, "status": "finished"}, uid="b")
    for key in ("a_0_0", "a_c1_0_0", "b_0_0", "b_c0_1_0"):
        store.put(key, {"status": "success"}, uid=key)
    sent = []
    trainer = SimpleNamespace(
        trainer_mode="colocate_async",
        global_steps=3,
        agent_loop_manager=SimpleNamespace(generate_sequences=sent.append),
    )
    load(f"{BASE}._reissue_inflight_prompts")(trainer)
    assert ("clear", ["a_0_0", "a_c1_0_0"]) in store.log, f"corrections stay behind: {store.log}"
    assert len(sent) == 1 and list(sent[0]["uid"]) == ["a"]
