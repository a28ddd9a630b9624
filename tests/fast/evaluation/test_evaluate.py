"""`python -m verl_cipo.evaluate`: dispatch, exit status, and the files of --dumps."""

import argparse
import csv
import json
import os
import subprocess
import sys

import pytest

from verl_cipo import evaluate
from verl_cipo.evaluation import strategies
from verl_cipo.evaluation.append_log import AppendLog
from verl_cipo.evaluation.dumps import command as dumps_command
from verl_cipo.evaluation.dumps.rows import Sample, Sampled
from verl_cipo.evaluation.dumps.summary import Settings, compare, measure, summarize
from verl_cipo.evaluation.dumps.tables import as_csv, as_markdown
from verl_cipo.evaluation.intervals import interval
from verl_cipo.evaluation.jsonl import told
from verl_cipo.evaluation.output import for_terminal, write_json
from verl_cipo.evaluation.probe import command as probe_command
from verl_cipo.evaluation.rescore import command as rescore_command
from verl_cipo.evaluation.suite import command as suite_command


def dump(path, verdicts):
    """One benchmark; verdicts: a text of 0 and 1 for each problem."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"input": f"problem {p}", "output": "x" * 8, "gts": str(p), "score": float(v), "step": 1, "uid": f"u{p}_{s}_0"}
        | {"pred": v}
        for p, problem in enumerate(verdicts)
        for s, v in enumerate(problem)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments):
    return evaluate.main(list(map(str, arguments)))


def test_figures_of_a_run_beside_a_baseline(tmp_path, capsys):
    new = dump(tmp_path / "new" / "gsm.jsonl", ["11", "10", "00", "11"])
    old = dump(tmp_path / "old" / "gsm.jsonl", ["10", "10", "00", "00"])
    output = tmp_path / "figures" / "new.json"

    assert run("--dumps", new, "--compare", old, "--output", output, "--csv", "--markdown", "--confidence", 0.9) == 0
    figures = json.loads(output.read_text())
    found = figures["run"]["benchmarks"]["gsm"]
    assert (figures["confidence"], figures["seed"]) == (0.9, 0)
    assert figures["run"]["files"] == [str(new)]
    assert (figures["run"]["rows"], figures["run"]["skipped"]) == ({"attempts": 8}, [])
    assert (found["problems"], found["samples"]) == (4, {"min": 2, "max": 2})
    assert found["figures"]["pass@2"]["estimate"] == 0.75
    assert found["figures"]["avg@n"] == vars(interval([1, 0.5, 0, 1], confidence=0.9))
    assert found["figures"]["maj@2"]["estimate"] == 0.625
    assert found["figures"]["chars"] == {"estimate": 8.0, "low": 8.0, "high": 8.0, "problems": 4}
    difference = figures["comparison"]["differences"]["gsm"]["avg@n"]
    assert difference["estimate"] == 0.375
    assert difference["low"] <= 0.375 <= difference["high"]
    assert difference["sign_test"] == {"higher": 2, "lower": 0, "equal": 2, "p": 0.5}
    table = output.with_suffix(".md").read_text()
    assert capsys.readouterr().out == for_terminal(table)
    assert "overall" not in table
    lines = list(csv.DictReader(output.with_suffix(".csv").open()))
    assert {line["run"] for line in lines} == {"run", "baseline", "difference"}
    (line,) = [x for x in lines if (x["run"], x["benchmark"], x["metric"]) == ("baseline", "gsm", "pass@2")]
    assert (line["estimate"], line["problems"], line["p"]) == ("0.5", "4", "")
    assert sorted(path.name for path in output.parent.iterdir()) == ["new.csv", "new.json", "new.md"]


def test_pass_at_k_of_problems_with_every_number_of_right_samples(tmp_path):
    # Over c = 0 ... n the closed form adds up to C(n + 1, K + 1), so that the mean is K / (K + 1).
    path = dump(tmp_path / "a.jsonl", ["1" * c + "0" * (16 - c) for c in range(17)])

    assert run("--dumps", path, "--output", tmp_path / "a.json") == 0
    figures = json.loads((tmp_path / "a.json").read_text())["run"]["benchmarks"]["a"]["figures"]
    for k in (1, 2, 4, 8, 16):
        assert figures[f"pass@{k}"]["estimate"] == pytest.approx(k / (k + 1))


def test_the_same_call_writes_the_same_bytes(tmp_path):
    path = dump(tmp_path / "a.jsonl", ["1100", "1000", "0000"])
    written = []
    for _ in range(2):
        run("--dumps", path, "--output", tmp_path / "a.json")
        written.append((tmp_path / "a.json").read_bytes())

    assert written[0] == written[1]
    run("--dumps", path, "--output", tmp_path / "a.json", "--seed", 1)
    assert json.loads((tmp_path / "a.json").read_text())["run"] != json.loads(written[0])["run"]


def test_a_step_of_each_folder_is_chosen(tmp_path):
    for step, verdicts in ((1, "00"), (2, "01"), (3, "11")):
        dump(tmp_path / "val" / f"{step}.jsonl", [verdicts])
    val = tmp_path / "val"

    assert run("--dumps", val, "--step", 2, "--compare", val, "--compare-step", 1, "--output", tmp_path / "x.json") == 0
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["comparison"]["differences"]["val"]["avg@n"]["estimate"] == 0.5


def test_runs_that_are_compared_at_different_steps_are_told(tmp_path, capsys):
    """The newest dump of a run that still trains is of an earlier step than that of its finished baseline."""
    for name, steps in (("cipo", [0, 60]), ("grpo", [0, 60, 100])):
        for step in steps:
            dump(tmp_path / name / "validation" / f"{step}.jsonl", ["10", "11"])
    both = ["--dumps", tmp_path / "cipo", "--compare", tmp_path / "grpo", "--output", tmp_path / "x.json"]
    told = "the run is read at step 60, the baseline at step 100: --step and --compare-step choose others\n"

    for chosen, expected in (([], True), (["--compare-step", 60], False), (["--step", 0, "--compare-step", 60], False)):
        assert run(*both, *chosen) == 0
        assert (told in capsys.readouterr().err) is expected


def test_an_option_may_be_given_once_for_each_of_its_files(tmp_path):
    files = [dump(tmp_path / name, ["10"]) for name in ("a.jsonl", "b.jsonl")]
    both = ["--dumps", files[0], "--dumps", files[1], "--compare", files[0], "--compare", files[1]]
    assert run(*both, "--output", tmp_path / "x.json") == 0
    figures = json.loads((tmp_path / "x.json").read_text())
    assert figures["run"]["files"] == figures["baseline"]["files"] == list(map(str, files))


@pytest.mark.parametrize("module", [dumps_command, rescore_command, suite_command, probe_command, strategies])
def test_no_option_of_several_values_forgets_the_first_when_it_is_given_again(module):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    several = [each for each in parser._actions if each.nargs == "+"]
    assert several and all(isinstance(each, argparse._ExtendAction) for each in several)


def test_a_step_that_chooses_nothing_is_refused(tmp_path, capsys):
    path = dump(tmp_path / "val" / "1.jsonl", ["10"])
    dump(tmp_path / "suite" / "aime24.jsonl", ["10"])
    output = ["--output", tmp_path / "x.json"]

    assert run("--dumps", path, "--step", 7, *output) == 1
    assert f"step 7 is of a folder, not of {path}" in capsys.readouterr().err
    assert run("--dumps", tmp_path / "suite", "--step", 7, *output) == 1
    assert "no dump of step 7: its files are not named after steps" in capsys.readouterr().err
    assert run("--dumps", path, "--compare-step", 7, *output) == 2
    assert "--compare-step needs --compare" in capsys.readouterr().err
    assert run("--dumps", path, "--step", 1, *output) == 0


def test_bad_lines_end_the_run_unless_skipped(tmp_path, capsys):
    path = dump(tmp_path / "a.jsonl", ["10", "11"])
    path.write_text(path.read_text() + '{"input": "torn')
    output = tmp_path / "a.json"

    assert run("--dumps", path, "--output", output) == 1
    error = capsys.readouterr().err
    assert f"{path}:5: not JSON" in error and "--skip-bad" in error
    assert not output.exists()
    assert run("--dumps", path, "--output", output, "--skip-bad") == 0
    assert "skipped 1 bad lines" in capsys.readouterr().err
    assert [text.split(": ")[0] for text in json.loads(output.read_text())["run"]["skipped"]] == [f"{path}:5"]


def test_a_prompt_under_several_uids_is_one_problem_and_is_told(tmp_path, capsys):
    rows = [
        {"input": text, "output": "", "gts": "1", "score": score, "step": 0, "uid": f"{uid}_0_0"}
        for uid, text, score in (("a", "once", 1), ("b", "twice", 1), ("c", "twice", 0))
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert run("--dumps", path, "--output", tmp_path / "a.json", "--n", 1) == 0
    assert "1 of 2 problems stand under several uids" in capsys.readouterr().err
    figures = json.loads((tmp_path / "a.json").read_text())["run"]["benchmarks"]["a"]
    assert (figures["problems"], figures["samples"]) == (2, {"min": 1, "max": 2})
    assert figures["figures"]["avg@n"]["estimate"] == pytest.approx(0.75)
    assert run("--dumps", path, "--output", tmp_path / "a.json", "--n", 2) == 1
    assert "1 of 2 problems have not 2 samples; the first has 1: 'once'" in capsys.readouterr().err


def test_rows_without_a_verdict_are_told(tmp_path, capsys):
    row = {"input": "q", "output": "", "gts": "1", "score": 0.0, "step": 0, "acc": 0.0, "timeout": None}
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row | {"timeout": out}) + "\n" for out in (None, True, True)))

    assert run("--dumps", path, "--output", tmp_path / "a.json") == 0
    assert "2 rows without a verdict are no samples" in capsys.readouterr().err


def test_n_demands_that_many_samples(tmp_path, capsys):
    path = dump(tmp_path / "a.jsonl", ["10", "1"])

    assert run("--dumps", path, "--output", tmp_path / "a.json", "--n", 2) == 1
    assert "1 of 2 problems have not 2 samples; the first has 1: 'problem 1'" in capsys.readouterr().err
    assert run("--dumps", dump(path, ["10", "11"]), "--output", tmp_path / "a.json", "--n", 2) == 0


def test_what_is_not_there_is_named(tmp_path, capsys):
    assert run("--dumps", tmp_path / "none.jsonl", "--output", tmp_path / "a.json") == 1
    assert "none.jsonl" in capsys.readouterr().err


def test_options_of_the_reader_and_of_the_votes(tmp_path):
    path = dump(tmp_path / "a.jsonl", ["10"])
    output = tmp_path / "a.json"

    run("--dumps", path, "--output", output, "--name", "mine", "--no-maj", "--correct-threshold", -1)
    figures = json.loads(output.read_text())["run"]["benchmarks"]["mine"]["figures"]
    assert "maj@2" not in figures
    assert figures["avg@n"]["estimate"] == 1.0


def test_tokens_need_a_tokenizer(tmp_path, task_folder, capsys):
    path = dump(tmp_path / "a.jsonl", ["10"])
    output = tmp_path / "a.json"

    assert run("--dumps", path, "--output", output, "--max-tokens", 4) == 2
    assert "--tokenizer" in capsys.readouterr().err
    assert run("--dumps", path, "--output", output, "--tokenizer", task_folder / "model", "--max-tokens", 4) == 0
    figures = json.loads(output.read_text())["run"]["benchmarks"]["a"]["figures"]
    assert figures["tokens"]["estimate"] >= 4
    assert figures["truncated"]["estimate"] == 1.0


def test_the_mode_is_chosen_by_one_option(capsys):
    assert run("--output", "x") == 2
    assert "give one of --dumps, --suite, --second-turns, --rescore" in capsys.readouterr().err
    assert run("--dump", "a") == 2
    assert capsys.readouterr().err == (
        "give one of --dumps, --suite, --second-turns, --rescore; did you mean --dumps? "
        "(--help says what each is for)\n"
    )
    assert run("--dumps=a", "--suite", "b") == 2
    assert run("--help") == 0
    assert "--checkpoint" in capsys.readouterr().out
    assert run("--dumps", "--help") == 0
    assert "--compare-step" in capsys.readouterr().out


@pytest.mark.parametrize("confidence", ["0", "1", "95"])
def test_a_confidence_is_a_share(confidence, tmp_path):
    with pytest.raises(SystemExit):
        run("--dumps", tmp_path, "--output", tmp_path / "a.json", "--confidence", confidence)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--correct-threshold", "nan"),
        ("--correct-threshold", "inf"),
        ("--seed", "-1"),
        ("--n", "0"),
        ("--max-tokens", "0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(option, value, tmp_path, capsys):
    """No score is above NaN: all answers were wrong."""
    with pytest.raises(SystemExit):
        run("--dumps", dump(tmp_path / "a.jsonl", ["10"]), "--output", tmp_path / "a.json", option, value)
    assert f"argument {option}: {value}: expected" in capsys.readouterr().err


@pytest.mark.parametrize("option", evaluate.MODES)
def test_every_mode_has_its_own_help(option, capsys):
    assert run(option, "--help") == 0
    assert f"usage: python -m verl_cipo.evaluate [-h] {option}" in " ".join(capsys.readouterr().out.split())


def test_dumps_are_read_without_torch_and_verl(tmp_path):
    path = dump(tmp_path / "a.jsonl", ["10"])
    code = (
        "import sys; from verl_cipo.evaluate import main; assert main(sys.argv[1:]) == 0;"
        "assert not {'torch', 'verl', 'ray', 'vllm', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "--dumps", path, "--output", tmp_path / "a.json"]

    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize("given", [".", "validation"])
def test_a_run_is_taken_as_the_folder_of_its_validation(given, tmp_path):
    dump(tmp_path / "validation" / "1.jsonl", ["10"])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "data": {}}\n')
    assert run("--dumps", tmp_path / given, "--output", tmp_path / "a.json") == 0


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            {"question": "q", "anchor_correct": True, "corrections": []},
            "a dump of corrections: --second-turns reads it",
        ),
        ({"step": 1, "data": {}}, "a log of metrics: verl_cipo.report reads it"),
    ],
)
@pytest.mark.parametrize("option", ["--dumps", "--rescore"])
def test_a_file_of_another_kind_is_named(option, line, told, tmp_path, capsys):
    path = tmp_path / "1.jsonl"
    path.write_text(json.dumps(line) + "\n")
    given = path if option == "--dumps" else tmp_path
    assert run(option, given, "--output", tmp_path / "out" / "a.json") == 1
    error = capsys.readouterr().err
    assert f"{path}: no line of it is a verified answer" in error and told in error and "--skip-bad" not in error


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("file/a.json", "--output {}/file/a.json: {}/file is a file, expected a folder"),
        ("folder", "--output {}/folder: is a folder, expected a file"),
    ],
)
def test_an_output_that_cannot_be_written_is_named_before_the_work(output, told, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    assert run("--dumps", tmp_path / "gone", "--output", tmp_path / output) == 1
    assert told.format(tmp_path, tmp_path) in capsys.readouterr().err


def test_a_suite_does_not_write_into_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("--suite", "math6", "--checkpoint", tmp_path, "--output", tmp_path / "file") == 1
    assert capsys.readouterr().err == f"error: --output {tmp_path / 'file'}: is a file, expected a folder\n"


def test_what_is_replaced_is_named(tmp_path, capsys):
    path = dump(tmp_path / "a.jsonl", ["10"])
    options = ["--dumps", path, "--output", tmp_path / "a.json", "--markdown", "--csv"]
    assert run(*options) == 0
    assert "replaced" not in capsys.readouterr().err
    assert run(*options) == 0
    error = capsys.readouterr().err
    for option, name in (("--output", "a.json"), ("--markdown", "a.md"), ("--csv", "a.csv")):
        assert f"{option} {tmp_path / name}: is there and will be replaced" in error


@pytest.mark.parametrize("option", ["--dumps", "--compare", "--second-turns"])
def test_a_file_that_is_read_is_not_replaced(option, tmp_path, capsys):
    path = dump(tmp_path / "run" / "validation" / "1.jsonl", ["10"])
    before = path.read_bytes()
    first = ["--dumps", dump(tmp_path / "other" / "1.jsonl", ["10"])] if option == "--compare" else []
    for given in (path, tmp_path / "run"):
        assert run(*first, option, given, "--output", path) == 1
        assert f"--output {path}: is a file that is read, and would be lost" in capsys.readouterr().err
        assert path.read_bytes() == before


@pytest.mark.parametrize(("option", "name"), [("--csv", "a.csv"), ("--markdown", "a.md")])
def test_two_outputs_do_not_share_a_name(option, name, tmp_path, capsys):
    path = dump(tmp_path / "a.jsonl", ["10"])
    assert run("--dumps", path, "--output", tmp_path / name, option) == 1
    assert f"{option} {tmp_path / name}: is --output itself" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_a_pipe_stays_one(tmp_path, capsys):
    """As /dev/null and /dev/stdout would have to, for root."""
    os.mkfifo(tmp_path / "pipe")
    path = dump(tmp_path / "a.jsonl", ["10"])
    assert run("--dumps", path, "--output", tmp_path / "pipe") == 1
    assert "is a device or a pipe" in capsys.readouterr().err and (tmp_path / "pipe").is_fifo()


def test_errors_of_the_system_are_words():
    assert told(FileNotFoundError(2, "No such file or directory", "x")) == "x: no such file or directory"
    assert told(ValueError("as it is")) == "as it is"


def test_a_tokenizer_is_a_folder_and_no_name_of_the_hub(tmp_path, capsys):
    path = dump(tmp_path / "a.jsonl", ["10"])
    assert run("--dumps", path, "--output", tmp_path / "a.json", "--tokenizer", "Qwen/Qwen3-4B") == 1
    assert "--tokenizer Qwen/Qwen3-4B: no such folder" in capsys.readouterr().err


def test_a_benchmarks_name_of_several_lines_stands_in_one_cell(tmp_path, capsys):
    path = dump(tmp_path / "a.jsonl", ["10", "11"])
    assert run("--dumps", path, "--output", tmp_path / "a.json", "--name", "two\nlines | here") == 0
    # As a column or as a row, by the width of the terminal.
    assert "two lines | here" in capsys.readouterr().out
    assert "two\nlines | here" in json.loads((tmp_path / "a.json").read_text())["run"]["benchmarks"]


def test_half_a_surrogate_pair_is_written_as_json_has_it(tmp_path):
    value = {"text": "\ud83d", "whole": "\U0001f600"}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text()) == value
    with AppendLog(tmp_path / "a.jsonl", key=lambda row: row["text"]) as log:
        log.append([value])
        assert list(log.rows()) == [value]


def test_tables_for_a_terminal_by_hand(monkeypatch):
    text = "run\n\n| a | b\\|c |\n| --- | ---: |\n| long | 1 |\n| x |  |\n\nend\n"
    monkeypatch.setenv("COLUMNS", "80")
    assert for_terminal(text) == "run\n\na     b|c\nlong  1\nx\n\nend\n"
    monkeypatch.setenv("COLUMNS", "10")
    wide = "| a | bbbb | cccc |\n| --- | ---: | ---: |\n| x | 1 | 2 |\n"
    assert for_terminal(wide) == "a     x\nbbbb  1\ncccc  2\n"
    assert for_terminal(wide + "| y | 3 | 4 |\n") == "a  bbbb  cccc\nx  1     2\ny  3     4\n"


def problem(verdicts, benchmark, text):
    return Sampled(benchmark, (text, "1"), [Sample(correct=v == "1", chars=4) for v in verdicts])


def test_markdown_by_hand():
    settings = Settings(resamples=100)
    new = measure([problem("11", "a|b", "p"), problem("1", "c", "q")], settings)
    old = measure([problem("10", "a|b", "p"), problem("0", "c", "q")], settings)
    summaries = {"run": summarize(new, settings)}

    assert as_markdown(summaries, compare(new, old, settings), 0.9) == (
        "run\n"
        "\n"
        "| benchmark | problems | n | avg@n = pass@1 | pass@2 | chars |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| a\\|b | 1 | 2 | 100.0 | 100.0 | 4 |\n"
        "| c | 1 | 1 | 100.0 |  | 4 |\n"
        "| overall | 2 | 1-2 | 100.0 |  | 4 |\n"
        "\n"
        "difference on 2 problems of both (0 and 0 of one alone)\n"
        "\n"
        "| benchmark | metric | difference | problems | higher / lower / equal | sign test p |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |\n"
        "| a\\|b | avg@n | +50.0 | 1 | 1 / 0 / 0 | 1 |\n"
        "| a\\|b | pass@2 | +0.0 | 1 | 0 / 0 / 1 | 1 |\n"
        "| a\\|b | chars | +0 | 1 | 0 / 0 / 1 | 1 |\n"
        "| c | avg@n | +100.0 | 1 | 1 / 0 / 0 | 1 |\n"
        "| c | chars | +0 | 1 | 0 / 0 / 1 | 1 |\n"
        "| overall | avg@n | +75.0 | 2 | 2 / 0 / 0 | 0.5 |\n"
        "| overall | chars | +0 | 2 | 0 / 0 / 2 | 1 |\n"
        "\n"
        "Shares in percent, with 90% intervals (BCa bootstrap over problems).\n"
    )


def test_columns_stand_in_the_order_of_k_whatever_the_benchmarks_have():
    settings = Settings(resamples=100)
    run = measure([problem("1", "few", "p"), problem("1111", "many", "q")], settings)

    table = as_markdown({"run": summarize(run, settings)}, confidence=0.975)
    assert "| n | avg@n = pass@1 | pass@2 | pass@4 | chars |" in table
    assert "97.5% intervals" in table


def test_a_figure_over_some_problems_says_so():
    settings = Settings(resamples=100)
    run = measure([problem("11", "a", "p"), problem("11", "a", "q"), problem("1", "a", "r")], settings)
    summaries = {"run": summarize(run, settings)}

    assert "| 100.0 [100.0, 100.0] (2 problems) |" in as_markdown(summaries)
    assert "run,a,pass@2,1.0,1.0,1.0,2,,,,\n" in as_csv(summaries)
