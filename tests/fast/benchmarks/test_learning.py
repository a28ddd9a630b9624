"""benchmarks/learning.py: its figures on made results, and its cache."""

import json
import math

import pytest
from omegaconf import OmegaConf

from benchmarks import learning
from benchmarks.experiment import figures, pictures, runs
from benchmarks.experiment.arms import ABLATIONS, ARMS, CONTROL
from benchmarks.experiment.options import KNOB
from benchmarks.experiment.setting import QUICK, TASKS, record
from verl_cipo.core.config import CIPOConfig

TURNS = {"c2c": 3, "c2w": 1, "w2c": 1, "w2w": 3, "copies_failed": 1}


def result(arm: str, seed: int, right: list[int], samples: int = 8, **more) -> dict:
    turns = [TURNS, dict.fromkeys(TURNS, 0)]
    algo = {"base": None, "grpo": "grpo", CONTROL: "grpo"}.get(arm, "cipo")
    made_with = {"arm": {"name": arm, "algo": algo}, "seed": seed, "setting": {"samples": samples}}
    return {
        "right": right,
        "turns": turns,
        "tokens": 10,
        "commit": "c",
        "train_s": 2.0,
        "wall_s": 3.0,
        "made_with": made_with,
    } | more


def test_figures_of_a_run():
    found = figures.figures_of(result("cipo", 1, [4, 0]))
    assert found["pass@1"] == pytest.approx(0.25) and found["pass@8"] == pytest.approx(0.5)
    assert "pass@32" not in found  # of 8 samples
    assert (found["w2c"], found["c2c"], found["c2w"]) == (0.25, 0.75, 0.25)
    assert (found["turn2"], found["copy_rate_failed"]) == (0.5, 0.25)
    assert (found["retry"], found["w2c_over_retry"]) == (0.5, -0.25)  # 4 wrong attempts, all at the problem half solved
    assert found["tokens"] == 10


def test_what_is_counted_of_an_evaluation(tmp_path):
    """Problem 10 after problem 9; a copy of a right attempt is no fault."""
    attempts = [{"uid": f"attempts-{problem}_{i}_0", "acc": i < 1} for problem in (10, 9) for i in range(2)]
    turns = [
        {"uid": "turns-9", "anchor_correct": True, "corrections": [{"correct": True, "copied": True}]},
        {"uid": "turns-9", "anchor_correct": False, "corrections": [{"correct": True, "copied": False}]},
        {"uid": "turns-10", "anchor_correct": False, "corrections": [{"correct": False, "copied": True}]},
    ]
    for file, lines in (("attempts/0.jsonl", attempts), ("turns/corrections/0.jsonl", turns)):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    nine = {"c2c": 1, "c2w": 0, "w2c": 1, "w2w": 0, "copies_failed": 0}
    ten = {"c2c": 0, "c2w": 0, "w2c": 0, "w2w": 1, "copies_failed": 1}
    assert runs.counts(tmp_path) == {"right": [1, 1], "turns": [nine, ten]}


def test_a_rate_without_such_attempts_is_not_a_number():
    found = figures.rates(result("cipo", 1, [0, 0], turns=[TURNS | {"c2c": 0, "c2w": 0}] * 2))
    assert math.isnan(found["c2c"]) and math.isnan(found["c2w"]) and found["w2c"] == 0.25


def test_what_is_not_a_number_is_null_in_the_file(tmp_path):
    runs_ = {1: result("cipo", 1, [0, 0], turns=[TURNS | {"c2c": 0, "c2w": 0}] * 2)}
    summaries = {"full": learning.summarise({"cipo": runs_})}
    learning.write(tmp_path / "learning.json", summaries, tmp_path, engine="verl")
    written = json.loads((tmp_path / "learning.json").read_text(), parse_constant=pytest.fail)
    full = written["tasks"]["full"]
    assert full["arms"]["cipo"]["c2c"] == {"mean": None, "ci95": None, "values": [None]}
    assert full["commits"] == ["c"]


def test_tasks_of_two_engines_stand_in_one_file_and_are_not_mixed(tmp_path):
    file, runs_ = tmp_path / "learning.json", {"gone": {1: result("gone", 1, [0, 0])}}
    for task, engine in (("full", "verl"), ("stuck", "replica"), ("full", "replica"), ("full", "replica")):
        learning.write(file, {task: learning.summarise(runs_)}, tmp_path, engine=engine)
    engines = {task: one["engine"] for task, one in learning.written(file).items()}
    assert engines == {"full": "verl", "stuck": "replica", "full_replica": "replica"}
    assert (tmp_path / "learning" / "full_replica").is_dir()


def test_an_arm_that_is_declared_no_more_comes_last(tmp_path):
    for name in ("gone", "cipo"):
        (tmp_path / f"{name}_seed1").mkdir()
        (tmp_path / f"{name}_seed1" / "result.json").write_text(json.dumps(result(name, 1, [0, 0])))
    found = learning.read(tmp_path)
    assert list(found) == ["cipo", "gone"] and list(learning.summarise(found)["minus_grpo"]) == ["cipo", "gone"]


def test_interval_over_seeds_is_students():
    # Mean 2, standard deviation 1, three values: half width 4.302653 / sqrt(3).
    found = figures.over_seeds([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["ci95"] == pytest.approx([2 - 2.484138, 2 + 2.484138], abs=1e-5)
    assert figures.over_seeds([1.0])["ci95"] is None


def test_difference_is_paired_by_seed_and_leaves_out_seeds_of_one_arm():
    arm = {1: result("cipo", 1, [8, 4]), 2: result("cipo", 2, [4, 4]), 3: result("cipo", 3, [0, 0])}
    control = {1: result(CONTROL, 1, [4, 4]), 2: result(CONTROL, 2, [2, 4])}
    found = figures.difference(arm, control)
    assert found["seeds"] == [1, 2]
    assert found["pass@1"]["values"] == pytest.approx([0.25, 0.125]) and found["pass@1"]["diff"] == pytest.approx(
        0.1875
    )
    low, high = found["pass@1"]["ci95_problems"]
    assert low < 0.1875 <= high
    assert figures.difference(arm, {7: result(CONTROL, 7, [1, 1])}) == {}


def test_difference_by_start_parts_the_problems_by_what_the_model_before_training_solved():
    base = {1: result("base", 1, [1, 2, 4, 5]), 2: result("base", 2, [0, 3, 6, 8])}
    control = {1: result(CONTROL, 1, [4, 4, 4, 4]), 2: result(CONTROL, 2, [2, 2, 2, 2])}
    arm = {1: result("cipo", 1, [5, 6, 4, 8]), 2: result("cipo", 2, [0, 4, 2, 4]), 3: result("cipo", 3, [8, 8, 8, 8])}
    found = figures.difference_by_start(arm, control, base)
    assert found["seeds"] == [1, 2]
    # Of 8 samples: 1 is the edge of hard, 4 that of medium.
    assert found["hard"]["values"] == [0.125, -0.25] and found["hard"]["problems"] == 2
    assert found["medium"]["values"] == [0.125, 0.25] and found["medium"]["problems"] == 3
    assert found["easy"]["values"] == [0.5, 0.125] and found["easy"]["problems"] == 3
    assert found["medium"]["diff"] == pytest.approx(0.1875)
    assert "hard" not in figures.difference_by_start(arm, control, {1: result("base", 1, [4, 4, 4, 8])})
    assert figures.difference_by_start(arm, control, {7: base[1]}) == {}


def test_table_shows_arms_and_differences():
    found = {CONTROL: {1: result(CONTROL, 1, [2, 2])}, "cipo": {1: result("cipo", 1, [4, 4])}}
    text = learning.table(learning.summarise(found))
    assert "| cipo | 1 | 50.0 |" in text and f"| minus {CONTROL} |" in text and "| cipo | 1 | +25.0 |" in text
    assert "at the start" not in text  # which takes the arm base
    text = learning.table(learning.summarise({"base": {1: result("base", 1, [1, 3])}} | found))
    assert "| hard: solved up to 12.5 % at the start | medium: solved 12.5 to 50 % at the start |" in text
    assert text.endswith("| cipo | 1 | +25.0 | +25.0 |") and "minus grpo |" not in text
    text = learning.table(learning.summarise({"grpo": {1: result("grpo", 1, [1, 3])}} | found))
    assert text[text.index("| minus grpo |") :].splitlines()[2].startswith("| cipo | 1 | +25.0 |")


def test_published_runs_of_the_same_setting_count_as_done(tmp_path):
    raw, output = tmp_path / "results" / "learning", tmp_path / "runs"
    made_with = {"arm": record(ARMS["cipo"]), "seed": 1, "setting": record(QUICK)}
    done = result("cipo", 1, [4, 0], made_with=made_with)
    folder = output / "quick" / "cipo_seed1"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1, "data": {"cipo/rho": 0.3}}\n')
    (folder / runs.RESULT).write_text(json.dumps(done) + "\n")
    file = raw.parent / "learning.json"
    learning.write(file, {"quick": learning.summarise(learning.read(output / "quick"))}, output, engine="verl")
    learning.write(file, {"other": learning.summarise(learning.read(output / "quick"))}, output, engine="verl")
    assert list(json.loads(file.read_text())["tasks"]) == ["quick", "other"]

    learning.restore(raw / "quick", tmp_path / "other", TASKS["full"])
    assert not (tmp_path / "other").exists()
    learning.restore(raw / "quick", tmp_path / "again", QUICK)
    assert runs.run(ARMS["cipo"], 1, QUICK, tmp_path / "again") == done
    found = learning.read(tmp_path / "again")
    assert learning.training(found, tmp_path / "again") == {"cipo": [[{"cipo/rho": 0.3}]]}


def test_pictures_show_every_arm(tmp_path):
    found = {CONTROL: {s: result(CONTROL, s, [2, 2]) for s in (1, 2)}, "grpo": {1: result("grpo", 1, [2, 1])}}
    found |= {"cipo": {s: result("cipo", s, [4, s]) for s in (1, 2)}, "paired": {3: result("paired", 3, [1, 1])}}
    differences = learning.summarise(found)["minus_control"]
    pictures.plot_differences(differences, tmp_path / "new" / "learning.png")
    steps = [{"critic/score/mean": 0.25, "cipo/accuracy/base": 0.5, "cipo/rho": 0.3}, {"critic/score/mean": 0.5}]
    curves = {CONTROL: [[{"critic/score/mean": 0.25}]], "cipo": [steps, steps]}
    pictures.plot_training(curves, tmp_path / "training.png")
    pictures.plot_tasks({"stuck": curves, "demo": curves}, tmp_path / "tasks.png")
    for name in ("new/learning.png", "training.png", "tasks.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert [pictures.attempts(step) for step in steps] == [0.5, 0.5]
    assert [pictures.rho({"cipo/rho": 0.3, "cipo/anchors/total": total}) for total in (0, 4)] == [None, 0.3]


def rollouts(name: str) -> int:
    """Responses a step and prompt, in units of n."""
    knobs = [option for option in ARMS[name].options if option.startswith(KNOB)]
    config = OmegaConf.from_dotlist([option.removeprefix(KNOB) for option in knobs])
    cipo = CIPOConfig.from_mapping(OmegaConf.to_container(config))
    return ARMS[name].rollouts + (ARMS[name].algo == "cipo" and cipo.rolls_out)


def test_arms_sample_alike_and_differ_in_what_they_say():
    assert {name for name in ARMS if rollouts(name) != 2} == {"base", "grpo"}
    assert len({(arm.algo, arm.rollouts, arm.options) for arm in ARMS.values()}) == len(ARMS)
    assert all(arm.options for arm in ABLATIONS)


def test_a_run_of_other_settings_is_refused(tmp_path):
    (tmp_path / "cipo_seed1").mkdir()
    (tmp_path / "cipo_seed1" / "made_with.json").write_text('{"seed": 2}')
    with pytest.raises(ValueError, match="cipo_seed1 holds a run made with .* remove it or use another --output"):
        runs.run(ARMS["cipo"], 1, QUICK, tmp_path)


@pytest.mark.parametrize("difference", [0.5, math.nan])
def test_a_run_whose_rollouts_came_from_other_weights_is_refused(tmp_path, difference):
    steps = [{"training/rollout_probs_diff_max": 1e-6}, {"training/rollout_probs_diff_max": difference}]
    runs.check_weights(steps[:1], tmp_path)
    with pytest.raises(RuntimeError, match="at step 2 vLLM and the trainer .* did not have the trained weights"):
        runs.check_weights(steps, tmp_path)


def test_a_trained_run_is_kept_only_if_its_rollouts_came_from_its_weights(tmp_path, monkeypatch):
    def train(options, *, output):
        lines = [
            {"step": step, "data": {"training/global_step": step, "training/rollout_probs_diff_max": 0.5}}
            for step in range(1, QUICK.steps + 1)
        ]
        (output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (output / "checkpoints" / f"global_step_{QUICK.steps}" / "actor" / "huggingface").mkdir(parents=True)

    monkeypatch.setattr(runs, "prepared", lambda *_: None)
    monkeypatch.setattr(runs.launch, "train", train)
    with pytest.raises(RuntimeError, match="at step 1 vLLM"):
        runs.run(ARMS["cipo"], 1, QUICK, tmp_path)
    assert not list(tmp_path.glob("*/trained.json"))


def test_unknown_arm_is_named(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["learning.py", "--arms", "grop"])
    with pytest.raises(SystemExit):
        learning.main()
    assert "--arms grop: expected main, all, base, grpo" in capsys.readouterr().err
