"""The report in a real headless Chromium: it is drawn, paged, filtered, and runs nothing that a policy wrote.

It needs Chromium (apt-get install chromium) and fails without it.
"""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import image

from tests.fast.evaluation.report.browser import Browser
from tests.fast.evaluation.report.report_folders import training_step, write_run
from verl_cipo import report

ROWS = "document.querySelectorAll('#rows tbody tr')"
SHOWN = f"[...{ROWS}].map(row => row.dataset.transition)"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_run(folder / "one")
    write_run(folder / "two", gain=0.1)
    output = folder / "report.html"
    runs = [f"cipo={folder}/one", f"other={folder}/two"]
    assert report.main([*runs, "--output", str(output)]) == 0
    return output


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path) as started:
        yield started


def test_a_person_can_page_filter_and_search(page, browser):
    browser.open(page)

    assert browser.value("document.getElementById('count').textContent") == "1\u20135 of 22"
    assert browser.value(SHOWN) == ["w2c"] * 5
    assert browser.value("document.getElementById('previous').disabled")
    for _ in range(4):
        browser.click("#next")
    assert browser.value("document.getElementById('count').textContent") == "21\u201322 of 22"
    assert browser.value("document.getElementById('next').disabled")
    browser.click("#previous")
    assert browser.value("document.getElementById('count').textContent") == "16\u201320 of 22"

    browser.click("#kinds [data-transition='w2w']")
    assert browser.value("document.getElementById('count').textContent") == "1\u20134 of 4"
    assert browser.value(SHOWN) == ["w2w"] * 4
    assert browser.value("[...document.querySelectorAll('[aria-pressed=true]')].map(b => b.textContent)") == [
        "w\u2192w (4)"
    ]
    verdicts = f"[...{ROWS}[1].querySelectorAll('.verdict')].map(item => item.textContent)"
    assert browser.value(verdicts) == ["\u2717 wrong", "\u2717 wrong", "copied"]
    choose(browser, "copied", "false")
    assert browser.value(f"{ROWS}.length") == 2
    choose(browser, "run", "other")
    assert browser.value(f"{ROWS}.length") == 1
    choose(browser, "search", "no such text")
    assert browser.value("document.getElementById('count').textContent") == "No example fits these filters."
    assert browser.errors == []


def choose(browser, control, value):
    event = "input" if control == "search" else "change"
    element = f"document.getElementById('{control}')"
    browser.value(f"{element}.value = '{value}'; {element}.dispatchEvent(new Event('{event}'))")


def test_lines_that_the_attempt_lacks_are_marked(page, browser):
    browser.open(page)

    assert browser.value(f"[...{ROWS}[0].querySelectorAll('.changed')].map(line => line.textContent)") == ["no: 40"]


def test_what_a_policy_wrote_is_shown_and_never_run(page, browser):
    browser.open(page)
    browser.click("#kinds [data-transition='c2c']")

    assert "</script><script>document.title" in browser.value(f"{ROWS}[0].textContent")
    assert browser.value("document.title") == "CIPO report"
    assert browser.value("document.querySelectorAll('main img, main script').length") == 0
    assert browser.requests == [page.resolve().as_uri()]
    assert browser.errors == []


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_its_window_in_light_and_dark(page, browser, tmp_path, width, dark):
    browser.open(page, width=width, dark=dark)

    assert browser.value("document.documentElement.scrollWidth") == width
    charts = browser.value("[...document.querySelectorAll('figure svg')].map(svg => svg.getBoundingClientRect().width)")
    assert len(charts) == 24
    assert all(width * 0.3 < chart <= width for chart in charts)
    ends = browser.value("[...document.querySelectorAll('#overview td')].map(td => td.getBoundingClientRect().right)")
    assert max(ends) < width
    browser.screenshot(tmp_path / "page.png")
    pixels = image.imread(tmp_path / "page.png")[..., :3]
    assert pixels.shape[1] == width
    assert (np.median(pixels) < 0.3) == dark
    # Ink on paper: both ends of the scale are there.
    assert np.ptp(pixels) > 0.8


def test_a_live_page_follows_its_run_and_keeps_what_its_reader_did(browser, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    command = [sys.executable, "-m", "verl_cipo.report", "--follow", folder, "--port", "0", "--every", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # What a shell starts in the background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        address = process.stdout.readline().split()[0]
        browser.visit(address)
        browser.wait_for("document.body.textContent.includes('Nothing to draw yet')")
        write_run(folder)
        browser.wait_for("document.querySelector('#kinds button') !== null")
        browser.click("#theme")
        browser.click("#kinds [data-transition='c2w']")
        browser.click("figure summary")
        # A step, and the beginning of the next, as a page that is made in the middle of a write finds it.
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": 3, "data": training_step(3, rho=0.7)}) + '\n{"step": 4, "da')
        browser.wait_for("document.getElementById('replay')?.textContent.includes('70.0 %')")

        assert "malformed" not in browser.value("document.body.textContent")
        browser.wait_for("document.getElementById('note').textContent.startsWith('Read at')")
        assert browser.value("document.documentElement.dataset.theme") == "dark"
        assert browser.value(SHOWN) == ["c2w"]
        assert browser.value("document.querySelector('figure details').open")
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        browser.wait_for("document.getElementById('note').textContent.includes('has ended')")
    finally:
        process.kill()
    assert process.returncode == 0
    kept = f"ended; to keep the page: python -m verl_cipo.report {folder} --output report.html\n"
    assert said.endswith(f"\n{kept}")


def test_the_button_turns_light_into_dark_and_back(page, browser):
    browser.open(page)
    paper = "getComputedStyle(document.querySelector('figure')).backgroundColor"
    light = browser.value(paper)
    browser.click("#theme")
    dark = browser.value(paper)
    browser.click("#theme")

    assert (light, browser.value(paper)) == ("rgb(255, 255, 255)", "rgb(255, 255, 255)")
    assert dark == "rgb(24, 28, 33)"
