"""How verl loads verl_cipo, and how one option of verl's config switches it on."""

import inspect
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from tests.contracts.support.seams import calls_in_order, check_parameters, load, parameters, seam


@seam("verl/__init__.py, entry points of the group verl.plugins", "verl_cipo/plugin.py", "pyproject.toml")
def test_importing_verl_imports_the_plugins(tmp_path):
    (tmp_path / "contract_probe.py").write_text("")
    info = tmp_path / "contract_probe-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: contract-probe\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[verl.plugins]\ncontract_probe = contract_probe\n")
    code = (
        f"import os, sys; sys.path[:0] = {[str(tmp_path), *sys.path]!r}\n"
        "os.environ.update(VERL_USE_EXTERNAL_PLUGINS='contract_probe', VERL_PLATFORM='')\n"
        "os.environ.pop('VERL_USE_EXTERNAL_MODULES', None)\n"
        "import verl; assert 'contract_probe' in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"a plugin is not imported by `import verl`: {result.stderr[-500:]}"


@seam("core_algos.register_adv_est, get_adv_estimator_fn", "verl_cipo/integration/train/estimator.py")
def test_an_estimator_can_be_registered_by_name_and_twice():
    register = load("verl.trainer.ppo.core_algos:register_adv_est")
    find = load("verl.trainer.ppo.core_algos:get_adv_estimator_fn")

    def estimator(**_):
        return None

    for _ in range(2):
        assert register("contract_probe")(estimator) is estimator
    assert find("contract_probe") is estimator
    del load("verl.trainer.ppo.core_algos:ADV_ESTIMATOR_REGISTRY")["contract_probe"]


@seam("core_algos.ADV_ESTIMATOR_REGISTRY", "verl_cipo/doctor.py")
def test_the_registry_holds_names():
    assert "grpo" in load("verl.trainer.ppo.core_algos:ADV_ESTIMATOR_REGISTRY")


@seam("utils.config.validate_config", "verl_cipo/integration/switch.py", "verl_cipo/integration/dry_run.py")
def test_validate_config_takes_the_whole_config():
    function = inspect.unwrap(load("verl.utils.config:validate_config"))
    found = parameters(function)
    assert found == ["config", "use_reference_policy", "use_critic"], f"validate_config takes {found}"


@seam("trainer.main_ppo.main", "verl_cipo/integration/switch.py")
def test_main_validates_before_it_starts_ray(monkeypatch, config):
    """The switch turns CIPO on inside validate_config, and main_ppo holds that function under its own name."""
    main_ppo = load("verl.trainer.main_ppo")
    assert load("verl.trainer.main_ppo:validate_config") is load("verl.utils.config:validate_config"), (
        "main_ppo gets validate_config from elsewhere: the switch would never be called"
    )
    seen = []
    for name in ("validate_config", "run_ppo"):
        monkeypatch.setattr(main_ppo, name, lambda *args, _name=name, **kwargs: seen.append((_name, args, kwargs)))
    inspect.unwrap(main_ppo.main)(config)
    assert [name for name, _, _ in seen] == ["validate_config", "run_ppo"]
    assert seen[0][2]["config"] is config and seen[1][1][0] is config, "what is validated is not what is run"


@seam("main_ppo.TaskRunnerV1.run", "verl_cipo/integration/switch.py", "verl_cipo/config/cipo_trainer.yaml")
def test_the_task_runner_finds_its_trainer_by_the_configured_mode(monkeypatch):
    """Read where the trainer is made, so that the resolver imports CIPO's trainers there."""
    v1 = load("verl.trainer.ppo.v1")
    monkeypatch.setattr(v1, "get_trainer_cls", lambda name: (_ for _ in ()).throw(KeyError(f"asked for {name}")))
    runner = SimpleNamespace()
    try:
        load("verl.trainer.main_ppo:TaskRunnerV1").run(
            runner, OmegaConf.create({"trainer": {"v1": {"trainer_mode": "contract"}}})
        )
    except KeyError as error:
        assert "asked for contract" in str(error)
    else:
        raise AssertionError("TaskRunnerV1.run no longer asks get_trainer_cls for trainer.v1.trainer_mode")


@seam("main_ppo.TaskRunnerV1.init_agent_loop_manager", "verl_cipo/integration/rollout/manager.py")
def test_the_task_runner_makes_the_configured_manager():
    made = []

    class Trainer:
        def __getattr__(self, name):
            return lambda: name

    config = {
        "actor_rollout_ref": {"rollout": {"agent": {"agent_loop_manager_class": "tests.contracts.support.seams.load"}}}
    }
    runner = SimpleNamespace(config=OmegaConf.create(config), trainer=Trainer())
    main_ppo = load("verl.trainer.main_ppo")
    original, main_ppo.load_class_from_fqn = (
        load("verl.trainer.main_ppo:load_class_from_fqn"),
        lambda name, _: SimpleNamespace(create=lambda **kwargs: made.append((name, kwargs)) or "manager"),
    )
    try:
        load("verl.trainer.main_ppo:TaskRunnerV1").init_agent_loop_manager(runner)
    finally:
        main_ppo.load_class_from_fqn = original
    name, arguments = made[0]
    assert name == "tests.contracts.support.seams.load" and runner.agent_loop_manager == "manager"
    assert set(arguments) == {"config", "llm_client", "teacher_client", "reward_loop_worker_handles"}


@seam("main_ppo.TaskRunnerV1.run", "verl_cipo/integration/train/trainer.py")
def test_the_trainer_is_made_started_and_given_the_manager_in_this_order():
    calls_in_order(
        "verl.trainer.main_ppo:TaskRunnerV1.run",
        *("get_trainer_cls", "resolve", "trainer_cls", "init_agent_loop_manager", "fit"),
    )


@seam("trainer.ppo.v1.register_trainer, get_trainer_cls", "verl_cipo/integration/train/trainer.py")
def test_a_trainer_can_be_registered_by_name():
    check_parameters("verl.trainer.ppo.v1:register_trainer", ["name"])
    sync = load("verl.trainer.ppo.v1:PPOTrainerSync")
    probe = type("ContractProbe", (sync,), {})
    assert load("verl.trainer.ppo.v1:register_trainer")("contract_probe")(probe) is probe
    assert load("verl.trainer.ppo.v1:get_trainer_cls")("contract_probe") is probe
    del load("verl.trainer.ppo.v1.trainer_base:TRAINER_REGISTRY")["contract_probe"]


@seam(
    "the names of trainer.v1.trainer_mode", "verl_cipo/integration/switch.py", "verl_cipo/integration/train/trainer.py"
)
def test_verls_trainers_go_by_their_modes():
    find = load("verl.trainer.ppo.v1:get_trainer_cls")
    for mode, name in {
        "sync": "PPOTrainerSync",
        "colocate_async": "PPOTrainerColocateAsync",
        "separate_async": "PPOTrainerSeparateAsync",
    }.items():
        assert find(mode) is load(f"verl.trainer.ppo.v1:{name}"), f"trainer_mode={mode} is not {name}"


@seam("the trainers' classes", "verl_cipo/integration/train/trainer.py", "verl_cipo/integration/switch.py")
@pytest.mark.parametrize("mode", ["sync", "colocate_async", "separate_async"])
def test_cipos_trainers_stand_before_verls_in_the_order_of_methods(mode):
    from verl_cipo.integration.switch import resolve_trainer
    from verl_cipo.integration.train.trainer import CIPOTrainerMixin

    find = load("verl.trainer.ppo.v1:get_trainer_cls")
    cls = find(resolve_trainer(mode, "cipo"))
    assert issubclass(cls, find(mode)) and cls.verl_mode == mode
    assert cls.__mro__.index(CIPOTrainerMixin) < cls.__mro__.index(find(mode))


@seam("rollout.replica.get_rollout_replica_class", "verl_cipo/integration/logs.py")
def test_vllms_server_silences_the_root_logger_and_warnings_of_ours_are_seen():
    """The trainer's process imports it when it starts the rollout. Unless it silences, logs.py is no longer needed."""
    code = (
        "import logging, verl\n"
        "from verl.workers.rollout.replica import get_rollout_replica_class\n"
        "ours = logging.getLogger('verl_cipo')\n"
        "ours.warning('seen before')\n"
        "get_rollout_replica_class('vllm')\n"
        "ours.warning('seen after')\n"
        "assert logging.root.level == logging.ERROR, logging.root.level\n"
    )
    env = {name: value for name, value in os.environ.items() if not name.endswith("LOG_LEVEL")}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=env)
    assert result.returncode == 0, result.stderr[-500:]
    assert [result.stderr.count(f"seen {when}\n") for when in ("before", "after")] == [1, 1], result.stderr[-500:]
