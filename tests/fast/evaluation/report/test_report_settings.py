"""Settings: read from what Hydra wrote, and shown with what differs first."""

import pytest

from tests.fast.evaluation.report.report_folders import write_metrics, write_settings
from verl_cipo.evaluation.jsonl import EvaluationError
from verl_cipo.evaluation.report.knobs import knob_tables, option_tables, settings
from verl_cipo.evaluation.report.runs import read_arms
from verl_cipo.evaluation.report.settings import Settings, read_settings


def of_cipo(*given, estimator="cipo", **values):
    return Settings({"algorithm.adv_estimator": estimator} | values, frozenset(given))


def test_settings_are_read_by_dotted_key_with_what_was_given(tmp_path):
    config = {"algorithm.adv_estimator": "cipo", "data.max_response_length": 64, "data.empty": {}, "data.none": None}
    write_settings(tmp_path, config, "algorithm.adv_estimator=cipo", "+a.b='x=y'", "++c=1", "~d")
    found = read_settings(tmp_path)

    assert found.values == config
    assert found.given == {"algorithm.adv_estimator", "a.b", "c", "d"}
    assert found.corrects and found.response_length == 64


def test_the_response_length_of_the_rollout_counts_first_and_a_reference_is_no_length():
    length = "actor_rollout_ref.rollout.response_length"
    assert of_cipo(**{length: 8, "data.max_response_length": 64}).response_length == 8
    assert of_cipo(**{length: "${data.max_response_length}", "data.max_response_length": 64}).response_length == 64
    assert of_cipo().response_length is None


def test_a_folder_of_hydra_may_be_the_run_itself_and_a_run_may_have_none(tmp_path):
    write_settings(tmp_path / "run", {"a": 1})
    (tmp_path / "run/hydra/.hydra").rename(tmp_path / "run/.hydra")

    assert read_settings(tmp_path / "run").values == {"a": 1}
    assert read_settings(tmp_path) is None


@pytest.mark.parametrize(("text", "why"), [("a: [", "not YAML"), ("- a", "holds a list, expected Hydra's dict")])
def test_what_hydra_did_not_write_is_named(tmp_path, text, why):
    write_settings(tmp_path, {})
    file = tmp_path / "hydra/.hydra/config.yaml"
    file.write_text(text)

    with pytest.raises(EvaluationError, match=f"{file}: {why}"):
        read_settings(tmp_path)


def test_knobs_that_are_not_at_their_default_come_first():
    """An int is the float that it stands for, YAML's 1e-1 is text, and another estimator knows no knobs."""
    root = "algorithm.cipo"
    arms = {
        "a": [
            of_cipo(**{f"{root}.lambda_corr": 1, f"{root}.rho_gain": "1e-1", f"{root}.correct_threshold.math": 0.9}),
            of_cipo(**{f"{root}.lambda_corr": 1, f"{root}.rho_gain": 0.2, f"{root}.prompt.template": "x " * 100}),
        ],
        "grpo": [of_cipo(estimator="grpo", **{f"{root}.lambda_corr": 7.0})],
    }
    changed, every = knob_tables(arms)

    assert changed.head == ("knob", "a", "grpo", "default") and not changed.folded
    assert changed.rows == (
        ("rho_gain", "0.1, 0.2", "\u2013", "0.8"),
        ("prompt.template", "math, " + ("x " * 30)[:59] + "\u2026", "\u2013", "math"),
        # It follows from the template.
        ("prompt.standalone", "true, false", "\u2013", "true"),
        ("correct_threshold.math", "0.9, null", "\u2013", "\u2013"),
    )
    assert every.folded and ("lambda_corr", "1.0", "\u2013", "1.0") in every.rows
    assert ("n_corrections", "null", "\u2013", "null") in every.rows and (
        "rho_adaptive",
        "true",
        "\u2013",
        "true",
    ) in every.rows


def test_options_in_which_arms_differ_come_first_and_no_password_or_folder_of_a_run_is_shown():
    secret = "ray_kwargs.ray_init.runtime_env.env_vars.WANDB_API_KEY"
    given = ("data.seed", "data.files", "trainer.validation_data_dir", "hydra.run.dir", "algorithm.cipo.seed", secret)
    one, other = (
        [of_cipo(*given, **{"data.seed": seed, "data.files": ["a", "b"], secret: "hidden"}) for seed in seeds]
        for seeds in ((1, 2), (1,))
    )
    differing, same = option_tables({"one": one, "other": other})

    assert differing.rows == (("data.seed", "1, 2", "1"),) and not differing.folded
    assert same.rows == (("data.files", "[a, b]", "[a, b]"),) and same.folded
    alone, common = option_tables({"one": one})
    assert alone.rows == () and (common.title, common.folded) == ("Options that were given", False)


def test_runs_without_settings_are_named_beside_the_others(tmp_path):
    for name in ("with", "without"):
        write_metrics(tmp_path / name / "metrics.jsonl", {1: {"a": 1}})
    write_settings(tmp_path / "with", {"algorithm.adv_estimator": "cipo", "algorithm.cipo.seed": 2})
    section = settings(read_arms([str(tmp_path / "with"), str(tmp_path / "without")], []))

    assert [table.title for table in section.tables] == [
        "Knobs of CIPO that are not at their default",
        "All knobs of CIPO",
    ]
    assert section.tables[0].rows == (("seed", "2", "1"),)
    assert section.missing == ["Settings: no hydra/.hydra/config.yaml in the folder of without"]
