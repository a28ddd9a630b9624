"""Figures of a run and the difference of two, by hand."""

import pytest

from verl_cipo.evaluation.dumps.rows import Sample, Sampled
from verl_cipo.evaluation.dumps.summary import Measured, Settings, compare, measure, summarize, values_of
from verl_cipo.evaluation.intervals import SignTest, interval

QUICK = Settings(resamples=200)


def problem(verdicts, *, benchmark="b", text="x", gts="1", **fields):
    samples = [Sample(correct=bool(int(v)), chars=10 * (i + 1), **fields) for i, v in enumerate(verdicts)]
    return Sampled(benchmark, (text, gts), samples)


def measured(*problems):
    return measure(problems, QUICK)


def estimates(figures):
    return {metric: figure.estimate for metric, figure in figures.items()}


def test_metrics_of_a_problem():
    assert values_of(problem("1000"), QUICK) == {
        "avg@n": 0.25,
        "pass@1": pytest.approx(0.25),
        "pass@2": pytest.approx(0.5),
        "pass@4": 1.0,
        "chars": 25.0,
    }


def test_votes_lengths_and_truncation_are_metrics_where_every_sample_tells():
    told = values_of(problem("10", pred="7", tokens=5, truncated=False), QUICK)
    half = problem("10", pred="7", tokens=5, truncated=True)
    half.samples[1] = Sample(correct=False, chars=1)

    assert {name: told[name] for name in ("maj@2", "tokens", "truncated")} == {
        "maj@2": 0.5,
        "tokens": 5.0,
        "truncated": 0.0,
    }
    assert set(values_of(half, QUICK)) == {"avg@n", "pass@1", "pass@2", "chars"}
    assert "maj@2" not in values_of(problem("10", pred="7"), Settings(majority=False))


def test_a_figure_is_the_mean_over_problems_with_its_interval():
    summary = summarize(measured(*(problem(v, text=str(i)) for i, v in enumerate(["11", "10", "00"]))), QUICK)

    assert estimates(summary["b"].figures) == {"avg@n": 0.5, "pass@1": 0.5, "pass@2": pytest.approx(2 / 3), "chars": 15}
    assert summary["b"].figures["avg@n"] == interval([1, 0.5, 0], resamples=200)
    assert (summary["b"].problems, summary["b"].samples) == (3, (2, 2))
    assert summary["overall"] == summary["b"]


def test_a_problem_that_lost_samples_costs_no_k_and_one_with_more_adds_none():
    summary = summarize(measured(problem("11"), problem("10"), problem("1"), problem("00000000")), QUICK)
    figures = summary["b"].figures

    assert list(figures) == ["avg@n", "pass@1", "pass@2", "chars"]
    assert (figures["pass@1"].problems, figures["pass@2"].problems) == (4, 3)
    assert figures["avg@n"].estimate == pytest.approx((1 + 0.5 + 1 + 0) / 4)
    assert figures["pass@2"].estimate == pytest.approx(2 / 3)
    assert summary["b"].samples == (1, 8)


def test_metrics_stand_in_the_order_of_k():
    summary = summarize(measured(problem("11", pred="1"), *[problem("1" * 16, pred="1")] * 2), QUICK)

    assert list(summary["b"].figures) == [
        *("avg@n", "pass@1", "pass@2", "pass@4", "pass@8", "pass@16"),
        *("maj@2", "maj@4", "maj@8", "maj@16", "chars"),
    ]


def test_overall_is_the_mean_over_benchmarks_of_what_all_have():
    run = measured(problem("1111", benchmark="a"), problem("00"), problem("00"), problem("00"))
    summary = summarize(run, QUICK)

    assert list(summary) == ["a", "b", "overall"]
    assert estimates(summary["overall"].figures) == {"avg@n": 0.5, "pass@1": 0.5, "pass@2": 0.5, "chars": 20.0}
    assert summary["overall"].figures["avg@n"].problems == 4


def test_no_benchmark_may_be_called_overall():
    with pytest.raises(ValueError, match="overall"):
        summarize(measured(problem("1", benchmark="overall")), QUICK)


def test_compare_takes_the_difference_problem_by_problem():
    run = measured(problem("11", text="p"), problem("10", text="q"), problem("00", text="r"), problem("1", text="new"))
    baseline = measured(
        problem("00", text="r"), problem("10", text="p"), problem("00", text="q"), problem("1", text="z")
    )
    comparison = compare(run, baseline, QUICK)
    difference = comparison.differences["b"]["avg@n"]

    assert (comparison.problems, comparison.only_run, comparison.only_baseline) == (3, 1, 1)
    assert difference.interval == interval([0.5, 0.5, 0.0], resamples=200)
    assert difference.signs == SignTest(higher=2, lower=0, equal=1, p=0.5)
    assert comparison.differences["b"]["pass@2"].interval.estimate == pytest.approx(1 / 3)
    assert comparison.differences["overall"] == comparison.differences["b"]


def test_compare_takes_the_ks_of_both_runs():
    differences = compare(measured(problem("1000")), measured(problem("01")), QUICK).differences["b"]

    assert {metric: d.interval.estimate for metric, d in differences.items()} == {
        "avg@n": -0.25,
        "pass@1": pytest.approx(-0.25),
        "pass@2": pytest.approx(-0.5),
        "chars": 10.0,
    }


def test_compare_matches_by_input_and_ground_truth_under_any_name():
    run = measured(problem("1", benchmark="ours"), problem("1", benchmark="ours", gts="2"))
    comparison = compare(run, measured(problem("0", benchmark="theirs")), QUICK)

    assert list(comparison.differences) == ["ours", "overall"]
    assert (comparison.problems, comparison.only_run, comparison.only_baseline) == (1, 1, 0)


def test_compare_keeps_one_problem_of_two_benchmarks_apart():
    run = measured(problem("1", benchmark="a"), problem("0", benchmark="b"))
    baseline = measured(problem("0", benchmark="a"), problem("1", benchmark="b"))
    differences = compare(run, baseline, QUICK).differences

    assert [differences[name]["avg@n"].interval.estimate for name in ("a", "b", "overall")] == [1.0, -1.0, 0.0]
    assert differences["overall"]["avg@n"].signs == SignTest(higher=1, lower=1, equal=0, p=1.0)


def test_equal_problems_of_a_run_are_averaged():
    comparison = compare(measured(problem("1"), problem("0")), measured(problem("0")), QUICK)

    assert comparison.problems == 1
    assert comparison.differences["b"]["avg@n"].interval.estimate == 0.5


def test_runs_without_a_common_problem_cannot_be_compared():
    with pytest.raises(ValueError, match="share no problem"):
        compare(measured(problem("1")), measured(problem("1", gts="2")), QUICK)


def test_figures_do_not_depend_on_the_order_of_problems():
    run = [Measured(problem("1"), {"avg@n": value}) for value in (0.0, 0.25, 1.0)]

    one, other = (summarize(order, QUICK)["b"].figures["avg@n"] for order in (run, run[::-1]))
    assert one.estimate == pytest.approx(other.estimate)
