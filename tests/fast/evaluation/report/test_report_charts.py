"""The pictures: labels that do not overlap, SVG that takes the page's colors, PNG."""

import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image
from matplotlib.text import Text

from verl_cipo.evaluation.report.charts import COLORS, Chart, Series, Strips, draw, number, png, spread, svg
from verl_cipo.evaluation.report.series import combine


def chart(*labels, name="chart", values=(0.2, 0.4), **how) -> Chart:
    curve = combine([dict(enumerate(values))])
    return Chart(name, "Title", tuple(Series(curve, label, index) for index, label in enumerate(labels)), **how)


def texts(element: str) -> list[str]:
    return ["".join(node.itertext()) for node in ET.fromstring(element).iter() if node.tag.endswith("text")]


def parsed(element: str) -> str:
    return element.replace("<svg ", '<svg xmlns:xlink="http://www.w3.org/1999/xlink" ', 1)


def test_spread_by_hand():
    assert spread([0.5, 0.1, 0.9], 0.1, 1.0) == [0.5, 0.1, 0.9]
    assert spread([0.5, 0.5], 0.1, 1.0) == pytest.approx([0.45, 0.55])
    assert spread([0.52, 0.5, 0.51], 0.1, 1.0) == pytest.approx([0.61, 0.41, 0.51])
    # The lower two part around .5 and meet the third.
    assert spread([0.5, 0.5, 0.6], 0.1, 1.0) == pytest.approx([13 / 30, 16 / 30, 19 / 30])
    # Nothing comes above the top: all three move down.
    assert spread([0.75, 1.0, 1.0], 0.1, 1.0) == pytest.approx([0.75, 0.9, 1.0])
    assert spread([0.9, 1.0, 1.0], 0.1, 1.0) == pytest.approx([0.8, 0.9, 1.0])


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 0.2))
def test_spread_keeps_distance_and_order(wanted, gap):
    placed = spread(wanted, gap, 1.0)
    order = sorted(range(len(wanted)), key=lambda index: placed[index])

    assert all(placed[b] - placed[a] >= gap - 1e-9 for a, b in zip(order, order[1:], strict=False))
    assert all(wanted[a] <= wanted[b] for a, b in zip(order, order[1:], strict=False))
    assert all(place <= 1.0 for place in placed)


def test_numbers():
    assert number(0.4567, shares=True) == "45.7 %"
    counts = {
        12340.0: "12.3 k",
        300.0: "300",
        2.5e6: "2.5 M",
        0.07149: "0.0715",
        0.0: "0",
        -0.5: "-0.5",
    }
    assert {value: number(value, shares=False) for value in counts} == counts


def test_every_line_is_named_with_its_last_value():
    found = texts(parsed(svg(chart("cipo", "$x_1$ <b>", "a name that is much too long to be shown"))))

    assert {"cipo: 40.0 %", "$x_1$ <b>: 40.0 %", "a name t\u2026 long to be shown: 40.0 %", "Title"} <= set(found)


def test_a_long_name_keeps_what_tells_its_lines_apart():
    """The names that the launch scripts give, with the quantities of a picture."""
    arm = "qwen2_5_0_5b_gsm8k_grpo_equal"
    found = texts(parsed(svg(chart(f"{arm} turn 1", f"{arm} turn 2"))))

    assert {"qwen2_5_\u2026grpo_equal turn 1: 40.0 %", "qwen2_5_\u2026grpo_equal turn 2: 40.0 %"} <= set(found)


def test_a_title_ends_within_the_picture():
    long = "the $Name$ of a W-shaped BENCHMARK/that has very many WORDS in its name: pass@1"
    alarm = ("qwen2_5_0_5b_gsm8k_cipo_stream #1: copy_rate", 0, ((2, 3),))
    strips = Strips("alarms", "Steps with an alarm of the guard", (alarm,), last=9)
    for one, end in ((replace(chart("", shares=False), title=long), ": pass@1"), (strips, "of the guard")):
        figure = draw(one)
        figure.draw_without_rendering()
        (title,) = (text for text in figure.findobj(Text) if text.get_text().endswith(end))

        assert title.get_window_extent().x1 <= figure.bbox.x1


def test_a_single_step_is_the_only_tick():
    figure = draw(chart("a", values=(0.2,)))
    figure.draw_without_rendering()

    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0"]


def test_the_svg_has_no_color_of_its_own_and_no_id_that_another_chart_has():
    one, other = svg(chart("a", name="one")), svg(chart("a", name="other"))
    ids = [set(re.findall(r'\bid="([^"]*)"', element)) for element in (one, other)]

    assert not re.findall(r"#[0-9a-f]{6}", one)
    assert "var(--series-0)" in one and "<style" not in one and "<metadata" not in one
    assert ids[0] and not ids[0] & ids[1]
    assert set(re.findall(r"url\(#([^)]*)\)", one)) <= ids[0]
    assert one == svg(chart("a", name="one"))


def test_the_style_sheet_defines_every_color_for_light_and_dark():
    style = files("verl_cipo.evaluation.report").joinpath("page.css").read_text()
    used = set(re.findall(r"var\(--([\w-]+)\)", svg(chart(*"abcde", by_arm=True)) + style)) - {"color"}

    assert {f"series-{index}" for index in range(len(COLORS))} <= used
    for start in (":root {", ':root[data-theme="dark"] {', ':root:not([data-theme="light"]) {'):
        block = style[style.index(start) :].partition("}")[0]
        assert used <= set(re.findall(r"--([\w-]+):", block)), start


def test_one_arm_has_a_color_for_each_of_its_quantities():
    curve = combine([{0: 0.1, 1: 0.2}])
    one = Chart("one", "Title", (Series(curve, "x", 0, 0), Series(curve, "y", 0, 1)))
    lines = (Series(curve, "x", 0, 0), Series(curve, "y", 0, 1), Series(curve, "z", 1, 0))
    two = Chart("two", "Title", lines, by_arm=True)

    assert [line.get_color() for line in draw(one).axes[0].lines] == [COLORS[0], COLORS[1]]
    assert [line.get_color() for line in draw(two).axes[0].lines] == [COLORS[0], COLORS[0], COLORS[1]]
    styles = [line.get_linestyle() for line in draw(two).axes[0].lines]
    assert styles[0] == styles[2] != styles[1]


def test_the_only_arm_that_has_figures_keeps_its_color():
    curve = combine([{0: 0.1, 1: 0.2}])
    of_second = Chart("x", "Title", (Series(curve, "b x", 1, 0), Series(curve, "b y", 1, 1)), by_arm=True)

    assert [line.get_color() for line in draw(of_second).axes[0].lines] == [COLORS[1], COLORS[1]]


def test_what_is_drawn_is_drawn_whole():
    """The steps of a single run are thin lines, above and below their mean."""
    curve = combine([{1: 10.0, 2: 70.0, 3: -30.0}], window=3)
    for shares in (True, False):
        axes = draw(Chart("x", "Title", (Series(curve, "", 0),), shares=shares)).axes[0]
        low, high = axes.get_ylim()
        assert low < -30 and 70 < high


def test_the_band_reaches_from_the_least_to_the_greatest_seed():
    curve = combine([{0: 0.1, 1: 0.2}, {0: 0.5, 1: 0.6}])
    (band,) = draw(Chart("x", "Title", (Series(curve, "", 0),))).axes[0].collections

    assert band.get_paths()[0].get_extents().extents == pytest.approx([0, 0.1, 1, 0.6])


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [((0.0, 1.0), 0.0, 1.0), ((0.5, 0.501), 0.45, 0.55), ((1.0, 1.0), 0.9, 1.0), ((-1.0, 0.5), -1.0, 0.5)],
)
def test_shares_are_drawn_within_0_and_100_percent_unless_they_are_none(values, low, high):
    bottom, top = draw(chart("a", values=values)).axes[0].get_ylim()
    slack = 0.13 * (high - low)

    assert low - slack <= bottom <= low + slack and high - slack <= top <= high + slack
    assert bottom < min(values) and max(values) < top


def test_counts_start_at_zero_and_powers_have_their_own_ticks():
    assert draw(chart("a", values=(500.0, 510.0), shares=False)).axes[0].get_ylim()[0] == 0
    curve = combine([{1: 0.1, 2: 0.2, 4: 0.3}])
    axes = draw(Chart("k", "Title", (Series(curve, "", 0),), powers=True)).axes[0]
    assert axes.get_xticks().tolist() == [1, 2, 4]


def test_strips_cover_whole_steps():
    (axes,) = draw(Strips("alarms", "Alarms", (("run: $copying$", 0, ((3, 5), (9, 9))),), 12)).axes
    bars = next(item for item in axes.collections if len(item.get_paths()) == 2)

    assert [path.get_extents().extents[[0, 2]].tolist() for path in bars.get_paths()] == [[2.5, 5.5], [8.5, 9.5]]


def test_png():
    pixels = image.imread(io.BytesIO(png(chart("a"))))

    assert pixels.shape[:2] == (720, 1200)
    assert np.ptp(pixels[..., :3]) > 0.5
