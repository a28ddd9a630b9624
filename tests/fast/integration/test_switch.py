"""The switch: what a config with adv_estimator=cipo becomes, and which ones are refused with which words."""

import asyncio
import inspect
import json
import pickle
import subprocess
import sys
from dataclasses import fields

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict
from verl.utils import config as verl_config

from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.core.knob_docs import SECTIONS
from verl_cipo.integration import settings, switch

STOCK = ("verl.trainer.config", "ppo_trainer")
OURS = ("verl_cipo.config", "cipo_trainer")
OF_VERL = "verl.trainer.ppo.v1.AgentLoopManagerTQ"
NEEDED = ["actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.rollout.n=4"]


def composed(*overrides: str, source: tuple[str, str] = STOCK):
    module, name = source
    with initialize_config_module(module, version_base=None):
        return compose(name, overrides=[*NEEDED, *overrides])


def switched(*overrides: str, source: tuple[str, str] = STOCK):
    config = composed("algorithm.adv_estimator=cipo", *overrides, source=source)
    switch.switch_on(config)
    return config


def test_stock_config_is_switched_on_completely():
    config = switched()
    assert OmegaConf.to_container(config.algorithm.cipo) == CIPOConfig(schedule="streaming").to_mapping()
    assert config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == settings.MANAGER_CLASS
    assert config.trainer.v1.trainer_mode == "cipo_sync"


def test_our_config_with_another_estimator_is_verls():
    config = composed("algorithm.adv_estimator=grpo", source=OURS)
    stock = composed("algorithm.adv_estimator=grpo")
    assert config.trainer.v1.trainer_mode == "sync"
    assert config.actor_rollout_ref.rollout.agent.agent_loop_manager_class is None
    del config.algorithm.cipo, config.actor_rollout_ref.rollout.agent.agent_loop_manager_class
    assert OmegaConf.to_container(config, resolve=True) == OmegaConf.to_container(stock, resolve=True)


def test_our_config_needs_no_hook():
    config = composed(source=OURS)
    stock = switched()
    # What auto and null are for its trainer is written down by the switch, and otherwise when the trainer is made.
    written = settings.cipo_config(config).to_mapping()
    assert OmegaConf.to_container(stock.algorithm.cipo) == written
    config.algorithm.cipo = written
    assert OmegaConf.to_container(config, resolve=True) == OmegaConf.to_container(stock, resolve=True)


@pytest.mark.parametrize("source", [STOCK, OURS])
def test_a_manager_that_the_config_names_is_what_cipos_is_laid_over(source):
    named = f"{'+' if source is STOCK else ''}actor_rollout_ref.rollout.agent.agent_loop_manager_class={OF_VERL}"
    config = composed("algorithm.adv_estimator=cipo", named, source=source)
    for _ in range(2):  # verl's TaskRunner has it validated again
        assert settings.settle(config).manager == OF_VERL == config.algorithm.cipo.manager
        assert config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == settings.MANAGER_CLASS


def test_knobs_reach_the_config():
    config = switched("+algorithm.cipo.lambda_corr=0.25", "+algorithm.cipo.prompt.template=code")
    assert config.algorithm.cipo.lambda_corr == 0.25
    assert config.algorithm.cipo.prompt.template == "code"


TEMPLATES = {
    "plain": "Q: {question}\n\nA: {attempt} \u00e4",
    "quotes": """'{question}' "{attempt}" # : - \\n""",
    "references": "${question} is ${attempt}$, $${{x}}, \\${y}, ${oc.env:HOME}, ${",
}


def as_a_worker_gets_it(config):
    """Resolved by verl's TaskRunner, and pickled by Ray."""
    OmegaConf.resolve(config)
    return pickle.loads(pickle.dumps(config))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("use_v1", ["true", "false"], ids=["V1", "V0"])
def test_workers_get_the_text_of_a_template_and_open_no_file(name, use_v1, tmp_path, monkeypatch):
    """The file is gone after the switch, and a worker's working directory is another one."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.txt"
    file.write_text(TEMPLATES[name] + "\n", encoding="utf-8")
    config = switched("+algorithm.cipo.prompt.template=mine.txt", f"trainer.use_v1={use_v1}")
    file.unlink()
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    worker = as_a_worker_gets_it(config)
    assert settings.cipo_config(worker).prompt.template == TEMPLATES[name]
    if use_v1 == "false":
        # verl's TaskRunner has it validated again.
        switch.switch_on(worker)
    # The trainer runs under verl's own name of the mode.
    worker.trainer.v1.trainer_mode = "sync"
    assert settings.settle(worker).prompt.template == TEMPLATES[name]
    assert settings.cipo_config(as_a_worker_gets_it(worker)).prompt.template == TEMPLATES[name]


def test_workers_get_the_text_of_a_review_and_open_no_file(tmp_path):
    (tmp_path / "mine.txt").write_text("Look again, ${at} all of it.", encoding="utf-8")
    file, form = (
        f"+algorithm.cipo.prompt.template={tmp_path / 'mine.txt'}",
        "+algorithm.cipo.prompt.form=assistant_turn",
    )
    config = switched(file, form)
    (tmp_path / "mine.txt").unlink()
    worker = as_a_worker_gets_it(config)
    assert settings.cipo_config(worker).prompt.template == "Look again, ${at} all of it.\n"
    worker.trainer.v1.trainer_mode = "sync"
    assert settings.settle(worker).prompt == settings.cipo_config(as_a_worker_gets_it(worker)).prompt


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_printed_config_can_be_run_again(name, tmp_path):
    (tmp_path / "mine.txt").write_text(TEMPLATES[name], encoding="utf-8")
    config = switched(f"+algorithm.cipo.prompt.template={tmp_path / 'mine.txt'}")
    printed = OmegaConf.to_yaml(config.algorithm.cipo, resolve=True)
    again = composed("algorithm.adv_estimator=cipo")
    OmegaConf.update(again, "algorithm.cipo", OmegaConf.create(printed), force_add=True)
    assert settings.cipo_config(again) == settings.cipo_config(config)
    # What OmegaConf does not take for a reference is one readable text.
    assert (yaml.safe_load(printed)["prompt"]["template"] == TEMPLATES[name]) == (name != "references")


def test_without_the_hook_the_trainer_reads_the_template_before_workers_get_the_config(tmp_path):
    """cipo_trainer.yaml with a task runner that nobody validated for."""
    from verl_cipo.integration.train.trainer import CIPOTrainerMixin

    class Stock:
        def __init__(self, config):
            self.config = config

    class Trainer(CIPOTrainerMixin, Stock):
        verl_mode = "sync"

    file = tmp_path / "mine.txt"
    file.write_text(TEMPLATES["plain"], encoding="utf-8")
    config = composed(f"algorithm.cipo.prompt.template={file}", source=OURS)
    OmegaConf.resolve(config)
    Trainer(config)
    file.unlink()
    # The rollout manager gets the same object.
    assert settings.cipo_config(as_a_worker_gets_it(config)).prompt.template == TEMPLATES["plain"]


def test_yaml_defaults_are_the_dataclass_defaults():
    from importlib.resources import files

    text = files("verl_cipo.config").joinpath("cipo_trainer.yaml").read_text()
    sections = {name: {knob.name: knob.default for knob in fields(cls)} for name, cls in SECTIONS.items()}
    assert yaml.safe_load(text)["algorithm"]["cipo"] == sections.pop("") | sections


@pytest.mark.parametrize("estimator", ["grpo", "gae"])
def test_other_estimators_go_to_verl_untouched(estimator, monkeypatch):
    config = composed(f"algorithm.adv_estimator={estimator}")
    before = OmegaConf.to_yaml(config)
    monkeypatch.setattr(switch, "switch_on", lambda _: pytest.fail("CIPO touched another estimator's config"))
    with pytest.raises(Exception) as ours:
        verl_config.validate_config(config=config, use_reference_policy=False, use_critic=False)
    with pytest.raises(Exception) as stock:
        verl_config.validate_config.__wrapped__(config=config, use_reference_policy=False, use_critic=False)
    assert (type(ours.value), str(ours.value)) == (type(stock.value), str(stock.value))
    assert OmegaConf.to_yaml(config) == before


REFUSED = {
    "+algorithm.cipo.replay_fracton=1": ["algorithm.cipo.replay_fracton", "replay_fraction"],
    "+algorithm.cipo.rho_init=1.5": ["algorithm.cipo.rho_init", "1.5"],
    "+algorithm.cipo.delta_low=0.9": ["algorithm.cipo.delta_low", "0.9", "delta_high"],
    "+algorithm.cipo.schedule=later": ["algorithm.cipo.schedule", "later", "streaming"],
    "+algorithm.cipo.prompt.template=/no/such/file": ["algorithm.cipo.prompt.template", "/no/such/file"],
    "+algorithm.cipo.prompt.template=[a,1]": ["algorithm.cipo.prompt.template", "['a', 1]", "math, code, the path"],
    "+algorithm.cipo.prompt.template='{question}'": ["algorithm.cipo.prompt.template", "{attempt} 0 times"],
    "trainer.v1.trainer_mode=later": ["trainer.v1.trainer_mode=later", "colocate_async", "separate_async", "sync"],
    "+algorithm.cipo.prompt.verdict=told": ["prompt.verdict = 'told'", "rho_adaptive=false", "rho_init=0"],
    "+algorithm.cipo.prompt={template:'{question}{attempt}',standalone:true}": [
        "prompt.standalone = True",
        "math or code",
    ],
    "+algorithm.cipo.prompt={form:assistant_turn,attempts:2}": ["prompt.attempts = 2", "form = 'message'"],
    "+algorithm.cipo.prompt={form:assistant_turn,template:'{question}{attempt}'}": ["neither {question} nor {attempt}"],
    "+trainer.v1.sync.parameter_sync_step=2": ["trainer.v1.sync.parameter_sync_step=2", "1"],
    "critic.enable=true": ["critic.enable=True"],
    "reward.reward_model.enable=true": ["reward.reward_model.enable_resource_pool"],
    "actor_rollout_ref.actor.shuffle=true": ["actor_rollout_ref.actor.shuffle=True", "set it to false"],
    "+algorithm.cipo.keep_all_wrong=0.5": ["algorithm.cipo.keep_all_wrong=0.5", "algorithm.filter_groups.enable=true"],
    "actor_rollout_ref.rollout.n=1": ["actor_rollout_ref.rollout.n=1", "at least 2"],
    "+actor_rollout_ref.rollout.agent.agent_loop_manager_class=my.Manager": [
        "algorithm.cipo.manager=my.Manager",
        "No module named 'my'",
    ],
    f"+actor_rollout_ref.rollout.agent.agent_loop_manager_class={settings.MANAGER_CLASS_V0}": ["AgentLoopManagerTQ"],
    "+algorithm.cipo.manager=collections.OrderedDict": ["collections.OrderedDict", "subclass of verl.trainer"],
    "+algorithm.cipo.manager=collections.Nothing": ["collections.Nothing", "cannot be imported"],
}


FILTER = "algorithm.filter_groups.enable=true"
REFUSED_WITH_FILTERING = {
    "trainer.v1.sampler.custom_sampler={path:mine.py,name:Mine}": ["custom_sampler.path=mine.py", "set it to null"],
    "algorithm.filter_groups.metric=null": ["algorithm.filter_groups.metric=None", "reward or acc"],
    "trainer.v1.trainer_mode=colocate_async +algorithm.cipo.schedule=barrier": ["schedule=barrier", "schedule=replay"],
    "trainer.v1.trainer_mode=colocate_async +algorithm.cipo.aux.kind=contrastive": [
        "schedule=streaming",
        "use schedule=replay without algorithm.cipo.aux.kind=contrastive",
    ],
    "+algorithm.cipo={schedule:replay,budget:auto}": ["algorithm.cipo.budget=auto", "use budget=fixed"],
    "+algorithm.cipo={keep_all_wrong:0.5,schedule:replay}": ["keep_all_wrong=0.5", "schedule=replay", "set it to 0"],
    "+algorithm.cipo={keep_all_wrong:0.5,replay_fraction:0}": ["keep_all_wrong=0.5", "no corrections are sampled"],
    "trainer.use_v1=false": ["algorithm.filter_groups.enable=True", "set trainer.use_v1=true"],
}


@pytest.mark.parametrize("overrides", REFUSED_WITH_FILTERING)
def test_what_group_filtering_cannot_be_combined_with(overrides):
    with pytest.raises(CIPOConfigError) as refused:
        switched(FILTER, *overrides.split())
    assert all(word in str(refused.value) for word in REFUSED_WITH_FILTERING[overrides]), str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        "+algorithm.cipo.keep_all_wrong=0.5",
        "+algorithm.cipo.budget=auto",
        "+algorithm.cipo.schedule=replay",
        "+algorithm.cipo={source:paired,aux:{coef:0.1}}",
        "trainer.v1.trainer_mode=colocate_async",
    ],
)
def test_what_works_with_group_filtering(overrides):
    switched(FILTER, overrides)


V0 = "trainer.use_v1=false"
REFUSED_BY_V0 = {
    "+algorithm.cipo.schedule=replay": ["algorithm.cipo.schedule=replay", "use barrier"],
    "trainer.v1.trainer_mode=colocate_async": ["trainer.v1.trainer_mode=colocate_async", "trainer.use_v1=true"],
    "trainer.balance_batch=false": ["trainer.balance_batch=False", "set it to true"],
    "trainer.critic_warmup=3": ["trainer.critic_warmup=3", "set it to 0"],
    "actor_rollout_ref.actor.use_prefix_grouper=true": ["actor_rollout_ref.actor.use_prefix_grouper=True"],
    "skip.rollout.enable=true": ["skip.rollout.enable=True"],
    "+actor_rollout_ref.rollout.agent.agent_loop_manager_class=my.Manager": ["my.Manager", settings.MANAGER_CLASS_V0],
    f"+algorithm.cipo.manager={OF_VERL}": ["algorithm.cipo.manager", "set it to null"],
    "critic.enable=true": ["critic.enable=True"],
}


@pytest.mark.parametrize("override", REFUSED_BY_V0, ids=lambda text: text.split("=")[0])
def test_what_the_v0_trainer_cannot_serve(override):
    with pytest.raises(CIPOConfigError) as refused:
        switched(V0, override)
    assert all(word in str(refused.value) for word in REFUSED_BY_V0[override]), str(refused.value)


def test_v0_trains_corrections_by_what_is_added_to_the_loss_beside_a_weight_of_their_own_only():
    aux, transfer = "+algorithm.cipo.aux.coef=0.1", "+algorithm.cipo.transfer.kind=inject"
    for added in (aux, transfer):
        with pytest.raises(CIPOConfigError, match=r"algorithm\.cipo\.lambda_corr=0 .*or trainer\.use_v1=true"):
            switched(V0, added, "+algorithm.cipo.lambda_corr=0")
    switched(V0, transfer)
    switched(transfer, "+algorithm.cipo.lambda_corr=0")
    switched(V0, aux, "+algorithm.cipo.lambda_corr=0", "+algorithm.cipo.source=paired")
    switched(V0, aux, "+algorithm.cipo.schedule=replay", "+algorithm.cipo.source=paired")


@pytest.mark.parametrize("source", [STOCK, OURS], ids=["stock", "ours"])
def test_v0_draws_at_the_barrier_and_says_so(source, caplog):
    with caplog.at_level("WARNING", logger="verl_cipo"):
        config = switched(V0, "++algorithm.cipo.schedule=streaming", source=source)
    assert config.algorithm.cipo.schedule == "barrier"
    assert config.actor_rollout_ref.rollout.agent.agent_loop_manager_class == settings.MANAGER_CLASS_V0
    (said,) = [record.getMessage() for record in caplog.records]
    assert "schedule=streaming with trainer.use_v1=False" in said and "barrier" in said
    # verl's TaskRunner resolves the config and has it validated again.
    OmegaConf.resolve(config)
    caplog.clear()
    switch.switch_on(config)
    assert config.algorithm.cipo.schedule == "barrier" and not caplog.records


@pytest.mark.parametrize(
    ("use_v1", "estimator", "changed"), [("false", "cipo", True), ("true", "cipo", False), ("false", "grpo", False)]
)
def test_v0_with_cipo_and_nothing_else_gets_cipos_trainer(use_v1, estimator, changed, monkeypatch):
    from verl.trainer import main_ppo_v0
    from verl.trainer.ppo.ray_trainer import RayPPOTrainer

    monkeypatch.setattr(main_ppo_v0, "RayPPOTrainer", RayPPOTrainer)
    monkeypatch.setattr(switch, "check_model", lambda *_: True)
    config = composed(f"algorithm.adv_estimator={estimator}", f"trainer.use_v1={use_v1}")
    # verl goes on to check batch and micro-batch sizes, which this config leaves open.
    with pytest.raises(Exception, match="micro_batch_size"):
        verl_config.validate_config(config=config, use_reference_policy=False, use_critic=False)
    assert (main_ppo_v0.RayPPOTrainer is not RayPPOTrainer) == changed
    assert main_ppo_v0.RayPPOTrainer.__name__ == ("CIPOTrainerV0" if changed else "RayPPOTrainer")


def test_within_ray_a_refusal_is_raised_and_not_an_exit(monkeypatch):
    """verl's V0 TaskRunner validates in an actor: an exit there would lose the message."""
    monkeypatch.setattr(switch.ray, "is_initialized", lambda: True)
    config = composed("algorithm.adv_estimator=cipo", V0, "trainer.balance_batch=false")
    with pytest.raises(CIPOConfigError, match="trainer.balance_batch"):
        verl_config.validate_config(config=config, use_reference_policy=False, use_critic=False)


CONTRASTIVE = ["+algorithm.cipo.aux.coef=0.1", "+algorithm.cipo.aux.kind=contrastive"]
TRANSFER = "+algorithm.cipo.transfer.kind=inject"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*CONTRASTIVE, "+algorithm.cipo.schedule=replay"], ["aux.kind=contrastive", "schedule=replay", "paired"]),
        (
            [TRANSFER, "algorithm.rollout_correction.bypass_mode=true"],
            ["algorithm.rollout_correction.bypass_mode=True", "transfer.kind"],
        ),
        (
            [TRANSFER, "actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"],
            ["actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean", "transfer.kind"],
        ),
        ([TRANSFER, "distillation.enabled=true"], ["distillation.enabled=True", "transfer"]),
        (
            [*CONTRASTIVE, "algorithm.rollout_correction.bypass_mode=true"],
            ["algorithm.rollout_correction.bypass_mode=True", "contrastive"],
        ),
        (
            [CONTRASTIVE[0], "+algorithm.cipo.source=both", "algorithm.rollout_correction.bypass_mode=true"],
            ["algorithm.rollout_correction.bypass_mode=True", "pairs"],
        ),
        (
            [*CONTRASTIVE, "actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean"],
            ["actor_rollout_ref.actor.policy_loss.loss_mode=geo_mean", "divides by all rows"],
        ),
        ([CONTRASTIVE[0], "distillation.enabled=true"], ["distillation.enabled=True", "aux.coef"]),
    ],
    ids=[
        "replay",
        "bypass transfer",
        "geo_mean transfer",
        "distillation transfer",
        "bypass",
        "bypass pairs",
        "geo_mean",
        "distillation",
    ],
)
def test_what_the_auxiliary_loss_cannot_be_trained_with(overrides, words):
    with pytest.raises(CIPOConfigError) as refused:
        switched(*overrides)
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize("off", ["+algorithm.cipo.transfer.coef=0", "+algorithm.cipo.replay_fraction=0"])
def test_transfer_that_is_off_refuses_nothing(off):
    switched(TRANSFER, off, "algorithm.rollout_correction.bypass_mode=true")


def test_transfer_works_with_anchors_of_the_step_before():
    switched(TRANSFER, "+algorithm.cipo.schedule=replay")


def test_what_the_auxiliary_loss_can_be_trained_with():
    switched(*CONTRASTIVE, "+algorithm.cipo.schedule=replay", "+algorithm.cipo.source=paired")
    switched(CONTRASTIVE[0], "+algorithm.cipo.schedule=replay", "algorithm.rollout_correction.bypass_mode=true")


@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_every_trainer_mode_gets_its_cipo_variant(mode):
    assert switched(f"trainer.v1.trainer_mode={mode}").trainer.v1.trainer_mode == f"cipo_{mode}"


@pytest.mark.parametrize("override", REFUSED, ids=lambda text: text.split("=")[0])
def test_refused_config_ends_in_one_line(override, monkeypatch):
    monkeypatch.setattr(switch, "check_model", lambda *_: True)
    config = composed("algorithm.adv_estimator=cipo", override)
    with pytest.raises(SystemExit) as stop:
        verl_config.validate_config(config=config, use_reference_policy=False, use_critic=False)
    message = str(stop.value)
    assert message.startswith("verl_cipo: ")
    assert "\n" not in message
    for word in REFUSED[override]:
        assert word in message


def test_shuffling_undoes_nothing_where_there_is_one_stream():
    switched("actor_rollout_ref.actor.shuffle=true", "+algorithm.cipo.replay_fraction=0")


def test_a_rollout_of_its_own_needs_verls_hybrid_engine():
    """verl 0.9.1: logger.info(..., flush=True) in _setup."""
    off = "actor_rollout_ref.hybrid_engine=false"
    with pytest.raises(CIPOConfigError, match=r"actor_rollout_ref\.hybrid_engine=False .*set it to true"):
        switched("trainer.v1.trainer_mode=separate_async", off)
    # The other modes do not read it.
    switched("trainer.v1.trainer_mode=colocate_async", off)
    # Once verl has fixed it, the refusal may go.
    from verl.trainer.ppo.v1 import PPOTrainerSeparateAsync, trainer_separate_async

    assert "flush=True" in inspect.getsource(PPOTrainerSeparateAsync._setup)
    with pytest.raises(TypeError, match="flush"):
        trainer_separate_async.logger.info("note", flush=True)


def test_a_reward_model_needs_a_function_that_asks_it():
    model = ["reward.reward_model.enable=true", "reward.reward_model.enable_resource_pool=true"]
    with pytest.raises(CIPOConfigError, match=r"reward\.custom_reward_function\.path=None .*reward_router_address"):
        switched(*model)
    switched(*model, "reward.custom_reward_function.path=judge.py")


def test_verls_reward_worker_gives_no_extra_info_of_a_reward_model():
    """Its agent loop reads result["reward_extra_info"]. Once verl has fixed it, the refusal may go."""
    from verl.experimental.reward_loop import RewardLoopWorker

    class Worker(RewardLoopWorker):
        def __init__(self):
            rollout = {"name": "vllm"}
            self.config = OmegaConf.create({"reward": {"reward_model": {"rollout": rollout, "model_path": "m"}}})

        async def _preprocess_reward_inputs(self, data):
            return "1+1? 2"

        async def _post_request(self, payload, endpoint):
            return {"data": [{"probs": [0.2, 0.8]}]}

    assert asyncio.run(Worker().compute_score_disrm(None)) == {"reward_score": 0.8}


def test_missing_transfer_queue_says_what_to_install(monkeypatch):
    monkeypatch.setattr(switch.importlib.util, "find_spec", lambda name: None if name == "transfer_queue" else object())
    config = composed("algorithm.adv_estimator=cipo")
    with pytest.raises(SystemExit, match="pip install TransferQueue"):
        verl_config.validate_config(config=config, use_reference_policy=False, use_critic=False)


def test_main_ppo_stops_before_ray_with_one_line(tmp_path):
    """The user's own command line, in a process of its own."""
    command = [sys.executable, "-m", "verl.trainer.main_ppo", "algorithm.adv_estimator=cipo", *NEEDED]
    result = subprocess.run(
        [*command, "+algorithm.cipo.rho_max=2"], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("verl_cipo: algorithm.cipo.rho_max")
    assert "2" in last and "[0, 1]" in last
    assert "Traceback" not in result.stderr
    assert "ray init" not in result.stdout


CHANGED_SEAM = """
import sys, types, verl.utils.config as config
config.validate_config = lambda config: None
for name in [name for name in sys.modules if name.startswith("verl_cipo")]:
    del sys.modules[name]
import verl.trainer.ppo.core_algos as core_algos
core_algos.ADV_ESTIMATOR_REGISTRY.pop("cipo")
try:
    import verl_cipo.plugin
except Exception as error:
    print(type(error).__name__, "cipo" in core_algos.ADV_ESTIMATOR_REGISTRY)
"""


def test_changed_seam_is_loud_and_leaves_nothing_registered():
    result = subprocess.run([sys.executable, "-c", CHANGED_SEAM], capture_output=True, text=True, timeout=600)
    assert result.stdout.strip().splitlines()[-1] == "ChangedSeamError False"
    assert "validate_config takes ['config'], expected ['config', 'use_reference_policy'" in result.stderr


def test_a_wrapper_of_another_plugin_does_not_pass_for_the_switch():
    import functools

    wrapped = functools.wraps(verl_config.validate_config.__wrapped__)(lambda *args, **kwargs: None)
    assert not switch.is_switch(wrapped)
    assert switch.is_switch(verl_config.validate_config)


IMPORT_WITH_VERSION = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "0.8.0" if name == "verl" else real(name)
import verl
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY
import json
print(json.dumps("cipo" in ADV_ESTIMATOR_REGISTRY))
"""


def test_unsupported_verl_is_an_error_line_not_silence():
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/tmp"}
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_WITH_VERSION], capture_output=True, text=True, timeout=600, env=environment
    )
    assert json.loads(result.stdout.strip().splitlines()[-1]) is False
    error = [line for line in result.stderr.splitlines() if line.startswith("ERROR") and "verl_cipo" in line]
    assert len(error) == 1
    assert "verl 0.8.0" in error[0] and ">=0.9.1,<0.10" in error[0] and "verl_cipo.doctor" in error[0]


SCHEDULED = [
    ("sync", {}, "streaming"),
    ("colocate_async", {}, "replay"),
    ("separate_async", {}, "replay"),
    ("separate_async", {"schedule": "barrier"}, "barrier"),
    ("sync", {"schedule": "replay"}, "replay"),
    # The wrong attempts of a batch are needed there.
    ("colocate_async", {"aux": {"coef": 0.1, "kind": "contrastive"}}, "streaming"),
    ("colocate_async", {"aux": {"coef": 0.0, "kind": "contrastive"}}, "replay"),
    ("colocate_async", {"transfer": {"kind": "inject"}}, "replay"),
    ("colocate_async", {"aux": {"coef": 0.1}}, "replay"),
]


def test_the_schedule_follows_the_trainer_mode():
    stock = composed("algorithm.adv_estimator=cipo")
    for mode, knobs, schedule in SCHEDULED:
        config = stock.copy()
        config.trainer.v1.trainer_mode = mode
        with open_dict(config):
            config.algorithm.cipo = knobs
        assert switch.switch_on(config).schedule == schedule
        assert config.trainer.v1.trainer_mode == f"cipo_{mode}"
        # As a trainer, which gives the mode verl's name again, and its workers have it.
        assert settings.cipo_config(config).schedule == schedule
        config.trainer.v1.trainer_mode = mode
        assert settings.cipo_config(config).schedule == schedule


def test_full_determinism_needs_an_engine_whose_seed_is_known():
    switched("actor_rollout_ref.rollout.full_determinism=true", "actor_rollout_ref.rollout.name=sglang")
    with pytest.raises(CIPOConfigError, match="rollout.name=naive.*expected vllm, sglang, trtllm"):
        switched("actor_rollout_ref.rollout.full_determinism=true", "actor_rollout_ref.rollout.name=naive")
    switched("actor_rollout_ref.rollout.name=naive")
