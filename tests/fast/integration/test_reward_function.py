"""How a second verifier is named, and what is refused before any worker starts."""

import os

import pytest
from omegaconf import OmegaConf

from tests.fast.integration.test_switch import OURS, STOCK, as_a_worker_gets_it, composed, switched
from verl_cipo.core.config import CIPOConfig, CIPOConfigError
from verl_cipo.integration import settings
from verl_cipo.integration.dry_run import check
from verl_cipo.integration.reward_function import load, located

GOOD = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None, **other):
    return 0.25

async def slow(data_source, solution_str, ground_truth, extra_info):
    return 0.5

three = 3

def of_another_form(solution_str, ground_truth):
    return 1.0
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(GOOD)
    (tmp_path / "broken.py").write_text("import a_module_that_is_nowhere\n")
    return tmp_path / "mine.py"


@pytest.mark.parametrize("named", ["mine.py", "mine.py:compute_score", "file://mine.py", "./mine.py"])
def test_a_file_is_named_with_or_without_a_function(file, named):
    assert load(named)(data_source="", solution_str="", ground_truth="", extra_info={}) == 0.25
    assert located(named) == f"{file}:compute_score"
    assert located(located(named)) == located(named)


def test_a_package_is_named_as_verl_names_one():
    from verl_cipo.rewards import math

    assert load("pkg://verl_cipo.rewards.math") is math.compute_score
    assert load("pkg://verl_cipo.rewards.math:compute_score") is math.compute_score
    assert located("pkg://verl_cipo.rewards.math") == "pkg://verl_cipo.rewards.math:compute_score"


def test_a_colon_in_a_folder_names_no_function(tmp_path):
    folder = tmp_path / "a:b"
    folder.mkdir()
    (folder / "mine.py").write_text(GOOD)
    assert load(f"{folder}/mine.py")(data_source="", solution_str="", ground_truth="") == 0.25


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ("nowhere.py", "nowhere.py"),
        ("mine.py:missing", "missing"),
        ("mine.py:three", "not a callable"),
        ("mine.py:of_another_form", "unexpected keyword argument"),
        ("broken.py", "a_module_that_is_nowhere"),
        ("pkg://a_module_that_is_nowhere:f", "a_module_that_is_nowhere"),
    ],
)
@pytest.mark.parametrize("use_v1", ["true", "false"], ids=["V1", "V0"])
def test_what_cannot_be_asked_is_refused_in_the_driver_with_the_reason(file, named, why, use_v1):
    with pytest.raises(CIPOConfigError, match=why) as caught:
        switched(f"+algorithm.cipo.second_verifier={named}", f"trainer.use_v1={use_v1}")
    said = str(caught.value)
    assert f"algorithm.cipo.second_verifier = '{named}'" in said and "expected pkg://" in said


def test_the_dry_run_refuses_it_too(file):
    with pytest.raises(CIPOConfigError, match="missing"):
        check(composed("algorithm.adv_estimator=cipo", "+algorithm.cipo.second_verifier=mine.py:missing"))


@pytest.mark.parametrize("source", [STOCK, OURS])
def test_workers_find_the_file_from_another_folder(file, monkeypatch, source):
    plus = "+" if source is STOCK else ""
    config = switched(f"{plus}algorithm.cipo.second_verifier=mine.py:slow", source=source)
    monkeypatch.chdir(os.sep)
    worker = as_a_worker_gets_it(config)
    assert settings.cipo_config(worker).second_verifier == f"{file}:slow"
    load(settings.cipo_config(worker).second_verifier)


def test_a_waiting_session_must_not_run_into_the_timeout_of_corrections():
    CIPOConfig(preset="stream", second_verifier="x.py", second_verifier_timeout=59, correction_timeout=60)
    CIPOConfig(preset="stream", second_verifier_timeout=60, correction_timeout=60)
    with pytest.raises(CIPOConfigError, match=r"second_verifier_timeout = 60.0 with .*correction_timeout = 60.0"):
        CIPOConfig(preset="stream", second_verifier="x.py", second_verifier_timeout=60, correction_timeout=60)
    for bad in (3, "", True):
        with pytest.raises(CIPOConfigError, match="second_verifier = "):
            CIPOConfig.from_mapping(OmegaConf.to_container(OmegaConf.create({"second_verifier": bad})))
