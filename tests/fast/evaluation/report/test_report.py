"""python -m verl_cipo.report from run folders to the page: what is in it, what is said to be missing, what fails."""

import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from tests.fast.evaluation.report.report_folders import (
    HOSTILE,
    VERLS,
    training_step,
    validation_row,
    write_lines,
    write_metrics,
    write_run,
    write_settings,
)
from verl_cipo import report
from verl_cipo.evaluation.report.page import Live, overview
from verl_cipo.evaluation.report.runs import read_arms
from verl_cipo.evaluation.report.sections import sections
from verl_cipo.evaluation.report.series import pass_by_k, pass_curves


class Page(HTMLParser):
    """Sections as {id: text}, and every attribute that could load something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections, self.links, self.data, self._open, self._quiet = {}, [], "", [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.links += [values[name] for name in ("src", "href", "xlink:href", "srcset", "action") if values.get(name)]
        if tag == "section":
            self._open.append(values["id"])
            self.sections[values["id"]] = ""
        if tag in ("script", "style"):
            self._quiet = values.get("id", tag)

    def handle_endtag(self, tag):
        if tag == "section":
            self._open.pop()
        if tag in ("script", "style"):
            self._quiet = ""

    def handle_data(self, data):
        if self._quiet == "data":
            self.data += data
        elif self._open and not self._quiet:
            self.sections[self._open[-1]] += " ".join(data.split()) + " "


def make(tmp_path, *arguments) -> Page:
    output = tmp_path / "report.html"
    assert report.main([*map(str, arguments), "--output", str(output)]) == 0
    return Page(output.read_text(encoding="utf-8"))


def test_a_whole_run_fills_every_section(tmp_path):
    page = make(tmp_path, write_run(tmp_path / "run"), "--title", "Run <1>")

    assert list(page.sections) == [
        "overview", "learning", "passk", "transitions", "replay", "collapse", "update", "responses", "cost", "time",
        "settings", "examples",
    ]  # fmt: skip
    assert "Not recorded" not in "".join(page.sections.values())
    assert "run 1 2 25.0 % \u2192 50.0 %" in page.sections["overview"]
    assert "retry c\u2192c w copied" in page.sections["overview"] and "20.0 % 12.5 % " in page.sections["overview"]
    assert "37.5 %" in page.sections["overview"]
    assert "w\u2192c: 20.0 %" in page.sections["transitions"] and "retry: 12.5 %" in page.sections["transitions"]
    assert "25.0 %" in page.sections["collapse"] and "50.0 %" not in page.sections["collapse"]
    assert "attempts: 1.0 k" in page.sections["cost"]
    assert "run: entropy" in page.sections["collapse"] and "1\u20132" in page.sections["collapse"]
    assert "7 of 7 w\u2192c, 1 of 1 c\u2192w" in page.sections["examples"]
    assert "Run &lt;1&gt;" in (tmp_path / "report.html").read_text()


def test_the_page_loads_nothing(tmp_path):
    page = make(tmp_path, write_run(tmp_path / "run"))
    html = (tmp_path / "report.html").read_text()

    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "default-src 'none'" in html
    assert not re.findall(r"@import|url\((?!#)", html)


def test_examples_cannot_leave_their_element(tmp_path):
    page = make(tmp_path, write_run(tmp_path / "run"))

    (hostile,) = [example for example in json.loads(page.data) if example["transition"] == "c2c"]
    assert hostile["question"] == hostile["attempt"] == hostile["correction"] == HOSTILE
    assert "taken" not in "".join(page.sections.values())


def test_a_label_is_text_wherever_it_stands(tmp_path):
    page = make(tmp_path, f"<b>$x$&={write_run(tmp_path / 'run')}", f"other={write_run(tmp_path / 'two')}")

    assert "<b>" not in (tmp_path / "report.html").read_text()
    assert "<b>$x$& 1 2" in page.sections["overview"]
    assert "<b>$x$& turn 1: 50.0 %" in page.sections["learning"]


def test_seeds_of_a_label_become_a_mean_with_a_band(tmp_path):
    page = make(
        tmp_path,
        f"cipo={write_run(tmp_path / 'a')}",
        f"cipo={write_run(tmp_path / 'b', gain=0.2)}",
        f"grpo={write_run(tmp_path / 'c', gain=0.3)}",
    )

    assert "cipo 2 2 25.0 % \u2192 60.0 %" in page.sections["overview"]
    assert "cipo turn 1: 60.0 %" in page.sections["learning"]
    assert {example["run"] for example in json.loads(page.data)} == {"cipo #1", "cipo #2", "grpo"}
    html = (tmp_path / "report.html").read_text()
    assert "cipo (2 seeds)" in html and "fill-opacity" in html and "least to the greatest seed" in html


def test_a_hacking_gap_is_drawn_where_a_run_has_one(tmp_path):
    write_metrics(tmp_path / "one", {1: training_step(1, hacking_gap=-0.02)})
    write_metrics(tmp_path / "two", {1: {"cipo/val/hacking_gap": 0.3}})
    write_metrics(tmp_path / "none", {1: training_step(1)})
    both = make(tmp_path, tmp_path / "one", tmp_path / "two")
    assert "one attempts: -2.0 %" in both.sections["hacking"] and "two: 30.0 %" in both.sections["hacking"]
    assert "hacking" not in make(tmp_path, tmp_path / "none").sections


def test_what_a_run_lacks_is_said(tmp_path):
    grpo = write_metrics(
        tmp_path / "grpo.jsonl",
        {0: {"val-core/gsm8k/acc/mean@2": 0.2}, 1: training_step(1) | {"val-core/gsm8k/acc/mean@2": 0.4}},
    )
    page = make(tmp_path, write_run(tmp_path / "cipo"), grpo)

    assert "Held-out problems solved: no cipo/val/accuracy_turn2 in grpo" in page.sections["learning"]
    # The other run has no val-core/*: both are read the same way, or not at all.
    assert "no val-core/*/mean@n or cipo/val/accuracy_turn1 in cipo" in page.sections["learning"]
    assert "no validation/<step>.jsonl in grpo" in page.sections["passk"]
    assert "no cipo/transitions/w2c in grpo" in page.sections["transitions"]
    assert "rho: no cipo/rho in grpo" in page.sections["replay"]
    assert "no cipo/guard/* in grpo" in page.sections["collapse"]
    assert "no tokens or no validation in cipo, grpo" in page.sections["cost"]
    assert "grpo 1 1 20.0 % \u2192 40.0 % \u2013" in page.sections["overview"]


def test_a_run_of_verls_own_trainer_is_drawn_from_what_verl_logs(tmp_path):
    folder = tmp_path / "grpo"
    steps = {step: {"training/global_step": step} | VERLS for step in (1, 2)}
    write_metrics(folder / "metrics.jsonl", steps | {0: {"val-core/gsm8k/acc/mean@2": 0.2}})
    write_settings(folder, {"algorithm.adv_estimator": "grpo", "data.max_response_length": 100})
    page = make(tmp_path, folder)

    assert "attempts: 0.35" in page.sections["learning"] and "20.0 %" in page.sections["learning"]
    assert all(value in page.sections["update"] for value in ("0.5", "0.001", "0.0001", "2"))
    assert "attempts: 75" in page.sections["responses"] and "attempts: 15.0 %" in page.sections["responses"]
    # 2000 tokens of prompts and responses, 25 : 75.
    assert "attempts: 1.5 k" in page.sections["cost"]
    for phase in ("step: 10", "generation: 4", "log-probabilities: 2.5", "update: 3", "rest: 0.5"):
        assert phase in page.sections["time"]


def test_grpo_with_second_turns_is_drawn_beside_cipo(tmp_path):
    grpo = write_metrics(
        tmp_path / "grpo.jsonl",
        {
            0: {f"cipo/val/{name}": 0.25 for name in ("accuracy_turn1", "accuracy_turn2", "w2c", "retry")},
            1: training_step(1, **{"rho": 0.3, "rows/base": 8.0, "rows/correction": 0.0, "accuracy/base": 0.4}) | VERLS,
        },
    )
    page = make(tmp_path, f"cipo={write_run(tmp_path / 'cipo')}", f"grpo={grpo}")

    assert "grpo turn 2: 25.0 %" in page.sections["learning"] and "grpo attempts: 40.0 %" in page.sections["learning"]
    assert "grpo w\u2192c: 25.0 %" in page.sections["transitions"]
    assert "rho: no cipo/rho in grpo" in page.sections["replay"], "it draws no anchors with it"


def test_a_color_is_that_of_its_arm_where_only_one_has_figures(tmp_path):
    grpo = write_metrics(tmp_path / "grpo.jsonl", {1: {"training/global_step": 1} | VERLS})
    arms = read_arms([f"grpo={grpo}", f"cipo={write_run(tmp_path / 'cipo')}"], [])
    charts = {chart.name: chart for section in sections(arms, window=1, bad=[]) for chart in section.charts}

    assert {line.arm for line in charts["transitions-held-out-w2c"].lines} == {1}
    assert all(chart.by_arm for name, chart in charts.items() if name != "alarms")


def test_a_budget_that_moves_has_its_picture(tmp_path):
    moving = {
        step: training_step(step, **{"rho": 0.3, "budget/correction_share": share})
        for step, share in ((1, 0.5), (2, 0.25))
    }
    page = make(tmp_path, write_metrics(tmp_path / "auto.jsonl", moving))
    assert "Slots that are corrections" in page.sections["replay"]
    page = make(tmp_path, write_run(tmp_path / "cipo"))
    assert "Slots that are corrections" not in page.sections["replay"] and "budget" not in page.sections["replay"]


def test_a_run_with_nothing_to_show_still_gives_a_page_that_says_so(tmp_path):
    page = make(tmp_path, write_metrics(tmp_path / "bare.jsonl", {1: {"actor/lr": 1e-6}}))

    assert all("Not recorded" in text for name, text in page.sections.items() if name != "overview")
    assert json.loads(page.data) == []


def test_each_of_several_benchmarks_has_its_picture(tmp_path):
    names = {"val-core/aime/acc/mean@4": 0.1, "val-core/openai/gsm8k/acc/mean@2": 0.5}
    run = write_metrics(tmp_path / "run.jsonl", {0: names, 5: names})
    section = sections(read_arms([str(run)], []), window=1, bad=[])[0]

    assert [chart.title for chart in section.charts[1:]] == ["aime: pass@1", "openai/gsm8k: pass@1"]
    assert section.charts[1].lines[0].curve.mean.tolist() == [0.1, 0.1]


def test_pass_at_k_by_hand(tmp_path):
    (arm,) = read_arms([str(write_run(tmp_path / "run"))], [])
    curves = pass_curves(arm, [], [])

    # 2 problems x 4 samples. Step 0: 1 right in each, pass@2 = 1/2. Step 2: 1 and 3 right, pass@2 = (1/2 + 1) / 2.
    assert {step: curve.mean.tolist() for step, curve in curves.items()} == {
        0: pytest.approx([0.25, 0.5, 1.0]),
        2: pytest.approx([0.5, 0.75, 1.0]),
    }
    assert curves[0].x.tolist() == [1, 2, 4]


def test_pass_at_k_goes_up_to_the_median_and_counts_problems_that_have_k(tmp_path):
    rows = [validation_row(0, session, session == 0) for session in range(2)]
    rows += [validation_row(problem, session, problem == 1) for problem in (1, 2) for session in range(4)]
    path = write_lines(tmp_path / "validation/1.jsonl", rows)

    found = pass_by_k(path, [])

    assert found == pytest.approx({1: (0.5 + 1 + 0) / 3, 2: (1 + 1 + 0) / 3, 4: 0.5})


def test_a_torn_first_dump_is_read_once(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    (folder / "validation/0.jsonl").write_text('{"input": "user')
    page = make(tmp_path, folder, "--skip-bad")
    assert "0.jsonl: its step is left out" in page.sections["passk"] and "step 2" in page.sections["passk"]
    assert capsys.readouterr().err.count("0.jsonl:1: not JSON") == 1


@pytest.mark.parametrize("left", ["", '{"input": "user\\nprob'])
def test_a_dump_of_a_run_killed_while_it_wrote_leaves_its_step_out_and_says_so(left, tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    last = folder / "validation/3.jsonl"
    last.write_text(left)
    skipped = ["--skip-bad"] if left else []

    page = make(tmp_path, folder, *skipped)

    assert f"no attempt in {last}: its step is left out" in page.sections["passk"]
    assert "step 2" in page.sections["passk"] and "step 3" not in page.sections["passk"]
    assert (f"left out: {last}:1: not JSON" in capsys.readouterr().err) is bool(left)
    live = report.make_page(report.parser().parse_args([str(folder), "--follow"]), Live("1", 1.0))
    assert not live[2], "a line that is being written is not malformed"

    for file in (folder / "validation").glob("*.jsonl"):
        file.write_text(left)
    page = make(tmp_path, folder, *skipped)
    assert page.sections["passk"].count("no attempt in") == 3


def test_the_overview_ends_where_a_seed_ends(tmp_path):
    long = write_metrics(tmp_path / "long.jsonl", {step: {"cipo/val/accuracy_turn1": step / 10} for step in range(5)})
    short = write_metrics(tmp_path / "short.jsonl", {step: {"cipo/val/accuracy_turn1": 0.0} for step in range(3)})

    (row,) = overview(read_arms([f"a={long}", f"a={short}"], [])).rows

    assert row[:4] == ("a", "2", "2", "0.0 % \u2192 10.0 %")


def test_pictures_are_written_beside(tmp_path, capsys):
    make(tmp_path, write_run(tmp_path / "run"), "--png", tmp_path / "pictures")
    names = {path.name for path in (tmp_path / "pictures").iterdir()}

    assert {"validation.png", "pass-at-k.png", "rho.png", "tokens.png", "alarms.png"} <= names
    assert (tmp_path / "pictures/rho.png").read_bytes().startswith(b"\x89PNG")
    assert set(capsys.readouterr().out.split()) == {
        str(tmp_path / "report.html"),
        *(str(tmp_path / "pictures" / name) for name in names),
    }


def test_malformed_lines_stop_the_report_and_name_each_file_and_line(tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    for name in ("metrics.jsonl", "validation/2.jsonl", "validation/corrections/2.jsonl"):
        with open(folder / name, "a") as file:
            file.write('{"torn')
    output = tmp_path / "report.html"

    assert report.main([str(folder), "--output", str(output)]) == 1
    said = capsys.readouterr().err
    assert all(f"{folder / place}: not JSON" in said for place in ("metrics.jsonl:4", "validation/2.jsonl:9"))
    assert said.count("validation/corrections/2.jsonl:11: not JSON") == 1
    assert "--skip-bad" in said
    assert not output.exists()

    assert report.main([str(folder), "--output", str(output), "--skip-bad"]) == 0
    assert capsys.readouterr().err.count("left out: ") == 3
    assert "3 malformed lines were left out." in output.read_text()


def test_a_missing_run_is_an_error_and_leaves_the_old_report(tmp_path, capsys):
    output = tmp_path / "report.html"
    output.write_text("old")

    assert report.main([str(tmp_path / "none"), "--output", str(output)]) == 1
    assert "give the folder that holds metrics.jsonl" in capsys.readouterr().err
    assert output.read_text() == "old"


@pytest.mark.parametrize("name", ["metrics.jsonl", "validation/2.jsonl"])
def test_a_page_does_not_replace_what_it_is_made_from(name, tmp_path, capsys):
    folder = write_run(tmp_path / "run")
    before = (folder / name).read_bytes()

    assert report.main([f"arm={folder}", "--output", str(folder / name)]) == 1
    assert "is a file that is read, and would be lost" in capsys.readouterr().err
    assert (folder / name).read_bytes() == before


def test_more_arms_than_colors_are_refused(tmp_path, capsys):
    runs = [str(write_metrics(tmp_path / f"run{index}.jsonl", {1: {"a": 1}})) for index in range(6)]

    assert report.main([*runs, "--output", str(tmp_path / "report.html")]) == 1
    assert "6 arms, and 5 colors" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--smooth", "--examples", "--characters"])
def test_numbers_below_one_are_refused(tmp_path, option, capsys):
    with pytest.raises(SystemExit):
        report.main([str(tmp_path), "--output", "x.html", option, "0"])
    assert "expected 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(("library", "package"), report.LIBRARIES.items())
def test_without_its_libraries_the_package_is_named(library, package, tmp_path):
    write_run(tmp_path / "run")
    code = (
        f"import sys; sys.modules['{library}'] = None; from verl_cipo import report; "
        "sys.exit(report.main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run", "--output", tmp_path / "x.html"], capture_output=True, text=True
    )

    assert (done.returncode, done.stderr) == (1, f"the report needs {library}: pip install {package}\n")


def test_the_command_imports_neither_verl_nor_torch(tmp_path):
    write_run(tmp_path / "run")
    code = (
        "import sys; from verl_cipo import report; assert report.main(sys.argv[1:]) == 0; "
        "print([name for name in ('verl', 'torch', 'ray', 'vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "run", "--output", tmp_path / "x.html"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.splitlines()[-1] == "[]"


def test_a_figure_that_was_no_finite_number_is_said_beside_its_curve(tmp_path):
    """verl's logger writes null for the gradient norm of a run that diverged."""
    run = tmp_path / "run"
    figures = {1: 2.0, 2: None, 3: None, 4: 1.0}
    write_metrics(run / "metrics.jsonl", {s: {**training_step(s), "actor/grad_norm": f} for s, f in figures.items()})

    found = make(tmp_path, run).sections["update"]
    assert found.count("actor/grad_norm was no finite number in run at 2 steps, the first of them 2.") == 1
