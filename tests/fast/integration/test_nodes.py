"""What the nodes of a Ray cluster lack, with two nodes on this machine."""

import os

import pytest
import ray
from omegaconf import OmegaConf
from ray.cluster_utils import Cluster
from verl.utils.import_utils import resolve_config_path

from verl_cipo import doctor
from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.integration import nodes

REWARD = "reward.custom_reward_function.path"


@pytest.fixture(scope="module")
def cluster():
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture
def connected(cluster):
    ray.init(address=cluster.address, logging_level="ERROR")
    yield
    ray.shutdown()


def config(path: str | None):
    made = OmegaConf.create({})
    OmegaConf.update(made, REWARD, path)
    return made


def test_each_node_is_asked_for_packages_files_and_modules(connected, tmp_path, monkeypatch):
    there = tmp_path / "there.py"
    there.touch()
    assert list(nodes.ask_nodes(files=[str(there)], modules=["json"]).values()) == [[], []]
    monkeypatch.setattr(nodes.metadata, "version", lambda name: "1.2.3" if name == "verl" else "0")
    monkeypatch.setattr(nodes, "PACKAGES", ("verl", "no-such-package"))
    first, second = nodes.ask_nodes(files=["/no/such/file.py"], modules=["no_such.module"]).values()
    assert first == second and "verl is" in first[0] and first[0].endswith("and not 1.2.3")
    assert first[1:3] == ["no-such-package is not installed", "/no/such/file.py does not exist"]
    assert first[3].startswith("no_such.module cannot be imported: ModuleNotFoundError")


def test_a_run_that_a_node_could_not_serve_is_refused_before_it_starts(connected, tmp_path):
    nodes.check_nodes(config(None), CIPOConfig())
    nodes.check_nodes(config("pkg://verl_cipo.rewards.math"), CIPOConfig())
    with pytest.raises(CIPOConfigError) as refused:
        nodes.check_nodes(config(str(tmp_path / "mine.py")), CIPOConfig())
    lines = str(refused.value).splitlines()[1:]
    assert len(lines) == 2 and all(line.endswith(f"{tmp_path / 'mine.py'} does not exist") for line in lines)


def test_what_a_run_needs_on_every_node(tmp_path):
    made = config("pkg://verl_cipo.rewards.code")
    agents = "actor_rollout_ref.rollout.agent.agent_loop_config_path"
    OmegaConf.update(made, agents, str(tmp_path / "agents.yaml"))
    cipo = CIPOConfig(second_verifier=f"{tmp_path / 'second.py'}:judge", manager="mine.managers.Manager")
    assert nodes.needed(made, cipo) == (
        [str(tmp_path / "agents.yaml"), str(tmp_path / "second.py")],
        ["verl_cipo.rewards.code", "mine.managers"],
    )


def test_files_that_verl_finds_below_its_package_are_looked_for_there(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tools, loops = "verl/trainer/config/ppo_trainer.yaml", "nowhere/loops.yaml"
    rollout = {"multi_turn": {"tool_config_path": tools}, "agent": {"agent_loop_config_path": loops}}
    files, _ = nodes.needed(OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}}), CIPOConfig())
    assert files == [str(tmp_path / loops), resolve_config_path(tools)] and os.path.exists(files[1])


def test_the_doctor_asks_the_nodes_of_a_cluster(cluster, monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [])
    monkeypatch.setattr(nodes, "PACKAGES", ("verl_cipo",))
    assert doctor.main(["--cluster", cluster.address]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in said[:2]] == [["ok", "node"]] * 2 and said[-1] == "ready to train"


def test_a_cluster_that_is_not_there_is_named(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [])

    def none(address):
        raise ConnectionError("could not find any running Ray instance")

    monkeypatch.setattr(nodes, "ask_cluster", none)
    assert doctor.main(["--cluster"]) == 1
    assert "FAIL    cluster" in capsys.readouterr().out


def test_on_one_node_nothing_is_asked(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}])
    monkeypatch.setattr(nodes, "ask_nodes", lambda **_: pytest.fail("the only node was asked"))
    nodes.check_nodes(config("/no/such/file.py"), CIPOConfig())
