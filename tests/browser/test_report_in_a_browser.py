"""The report in a real browser: `make test-browser` runs these; without chromium they are skipped, in CI they fail."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.summary import TrainingState
from pipeline.store.training import write_metrics
from pipeline.views.report import write_report
from tests.browser.chromium import Tab, find_chromium, open_tab
from tests.report_scene import HOSTILE, Scene, again, busy, filed, ran

pytestmark = pytest.mark.browser
WIDTHS = (1280, 360)
THEMES = ("light", "dark")
FIGURES = """Object.fromEntries([...document.querySelectorAll("data[id]")].map(one => [one.id,
    [one.value, one.innerText, one.getClientRects().length > 0]]))"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    program = find_chromium()
    if program is None:
        assert not os.environ.get("CI"), "CI must have chromium for the browser tests"
        pytest.skip("chromium is not installed: apt-get install chromium")
    with open_tab(program, tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def busy_scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = filed(ran(tmp_path_factory.mktemp("busy")), busy(4000))
    write_report(scene.root, now=1.8e9)
    return scene


@pytest.fixture(scope="module")
def hostile_scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = ran(tmp_path_factory.mktemp("hostile"), hostile=HOSTILE)
    uses = tuple(replace(use, name=HOSTILE, set_aside=HOSTILE) for use in scene.summary.deployments)
    scene = again(scene, job=HOSTILE, reason=HOSTILE, state="refused", exit_code=3, deployments=uses)
    write_report(scene.root, now=1.8e9)
    return scene


@pytest.fixture(scope="module")
def training_scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = ran(tmp_path_factory.mktemp("training"))
    lines = "\n".join(f"{step},{2 / step},{3 / step}" for step in range(1, 200))
    write_metrics(scene.root / "metrics.parquet", f"step,train_loss,valid_loss\n{lines}".encode(), compression="zstd")
    training = TrainingState(job="ftjob-1", state="succeeded", model="m", examples=18, deploy="az " + "x" * 300)
    scene = again(scene, fine_tuned_model="m:ft-1", training=training)
    write_report(scene.root, now=1.8e9)
    return scene


@pytest.fixture(params=["busy_scene", "hostile_scene", "training_scene"])
def page(request: pytest.FixtureRequest, tab: Tab) -> tuple[Tab, dict[str, Any]]:
    """A page that is open, and the summary of its run."""
    scene: Scene = request.getfixturevalue(request.param)
    tab.look(width=1280, theme="light")
    tab.open(_path(scene))
    summary: dict[str, Any] = json.loads((scene.root / "_pipeline" / "summary.json").read_text())
    return tab, summary


def _path(scene: Scene) -> Path:
    return scene.root / "_pipeline" / "report.html"


def test_the_figures_that_a_person_sees_are_those_of_the_summary(page: tuple[Tab, dict[str, Any]]) -> None:
    tab, summary = page
    figures = tab.ask(FIGURES)
    rows = summary["rows"]
    expected = {"rows-ok": rows["ok"], "rows-failed": rows["failed"], "rows-total": rows["total"]}
    expected |= {"exit-code": summary["exit_code"], "seconds": summary["seconds"]}
    if summary["training"] is None:
        tokens = summary["tokens"]
        expected |= {name: summary[name] for name in ("requests", "attempts", "throttled")}
        expected |= {"tokens-input": tokens["input"], "tokens-output": tokens["output"], "cost": summary["cost_usd"]}

    assert {name: float(figures[name][0]) for name in expected} == expected
    assert all(shown for _, _, shown in figures.values())
    for name in set(expected) - {"seconds", "cost"}:
        assert figures[name][1].replace(",", "") == str(expected[name])


def test_nothing_is_loaded_nothing_runs_and_the_policy_is_not_broken(page: tuple[Tab, dict[str, Any]]) -> None:
    tab, _ = page

    assert [one["request"]["url"].split(":")[0] for one in tab.told("Network.requestWillBeSent")] == ["file"]
    assert (
        tab.told("Log.entryAdded") == tab.told("Runtime.exceptionThrown") == tab.told("Runtime.consoleAPICalled") == []
    )
    assert tab.told("Page.javascriptDialogOpening") == []
    assert tab.ask("document.querySelectorAll('script, img, iframe, link').length") == 0


def test_hostile_names_are_shown_as_text(hostile_scene: Scene, tab: Tab) -> None:
    tab.open(_path(hostile_scene))

    assert "<script>alert(1)</script><img src=x onerror=alert(2)>\\u202egnp\\x1b[31m&amp;" in tab.ask(
        "document.querySelector('h1').innerText"
    )


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_any_window_and_follows_the_theme(page: tuple[Tab, dict[str, Any]], width: int, theme: str) -> None:
    tab, _ = page
    tab.look(width=width, theme=theme)

    assert tab.ask("document.documentElement.scrollWidth") <= width
    assert tab.ask("getComputedStyle(document.body).backgroundColor") == (
        "rgb(245, 246, 248)" if theme == "light" else "rgb(18, 22, 28)"
    )
    heights = tab.ask("[...document.querySelectorAll('.plot > svg')].map(one => one.getBoundingClientRect().height)")
    assert all(height > 100 for height in heights)
    small = tab.ask(
        "[...document.querySelectorAll('body *')].filter(one => one.innerText && "
        "parseFloat(getComputedStyle(one).fontSize) < 10).length"
    )
    assert small == 0
    wide = (
        "[...document.querySelectorAll('caption')].filter(one => one.getBoundingClientRect().right > innerWidth).length"
    )
    assert tab.ask(wide) == 0, "what a table says of itself is read without scrolling"


def test_a_rows_number_and_its_time_are_apart(busy_scene: Scene, tab: Tab) -> None:
    tab.open(_path(busy_scene))
    said = tab.ask("[...document.querySelectorAll('.ids li')].map(one => one.innerText.split('\\n')[0])")
    timed = [line for line in said if "UTC" in line]

    assert timed
    assert all(re.fullmatch(r"row \d+, \d{1,2} \w{3} \d{4}, \d\d:\d\d:\d\d UTC", line) for line in timed), timed


def test_everything_can_be_reached_by_the_keyboard(busy_scene: Scene, tab: Tab) -> None:
    tab.look(width=360, theme="light")
    tab.open(_path(busy_scene))
    reached = []
    for _ in range(30):
        tab.press("Tab")
        reached.append(tab.ask("document.activeElement.className || document.activeElement.tagName"))

    assert reached[0] == "skip"
    assert reached.count("scroll") >= tab.ask("document.querySelectorAll('.scroll').length")
    assert "SUMMARY" in reached


def test_a_reader_of_screens_hears_what_charts_show(page: tuple[Tab, dict[str, Any]]) -> None:
    tab, _ = page
    nodes = tab.send("Accessibility.getFullAXTree")["nodes"]
    heard = [(node.get("role", {}).get("value"), node.get("name", {}).get("value", "")) for node in nodes]
    charts = [name for role, name in heard if role in {"image", "img"}]

    assert len(charts) == tab.ask("document.querySelectorAll('.plot > svg').length") > 0
    assert all(len(name) > 20 for name in charts)
    assert [role for role, _ in heard if role in {"main", "banner", "contentinfo"}] == ["banner", "main", "contentinfo"]
    tables = [name for role, name in heard if role == "table"]
    assert all(tables)
    assert all(name for role, name in heard if role == "region")


def test_printed_it_is_a_few_pages_in_light_colors(busy_scene: Scene, tab: Tab) -> None:
    tab.look(width=1280, theme="dark")
    tab.open(_path(busy_scene))
    tab.send("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])

    assert tab.ask("getComputedStyle(document.body).color") == "rgb(27, 36, 48)"
    assert tab.ask("document.querySelector('#histogram').getBoundingClientRect().height") > 100
