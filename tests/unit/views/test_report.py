from __future__ import annotations

import base64
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pipeline.store.files import TEMPORARY_SUFFIX
from pipeline.store.journal import BatchRecord, BatchStep
from pipeline.store.summary import RowCounts, Summary, TrainingState
from pipeline.store.training import write_events, write_metrics
from pipeline.views.report import forecasts, outcome, read_report, render, write_report
from tests.report_scene import HOSTILE, PROMPT, QUOTE, Scene, again, attempt, busy, filed, ran

NOW = 1_763_900_000.0
VOID = {"meta", "br"}
VIEWS = Path(__file__).parents[3] / "pipeline" / "views"


@dataclass(slots=True)
class Page(HTMLParser):
    """A page as it is read without a browser; complains of tags that do not close."""

    tags: Counter[str] = field(default_factory=Counter)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    data: dict[str, str] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    headings: list[int] = field(default_factory=list)
    tables: list[set[str]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        HTMLParser.__init__(self, convert_charrefs=True)

    @classmethod
    def of(cls, text: str) -> Page:
        page = cls()
        page.feed(text)
        page.close()
        assert page.open == []
        return page

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        values = {name: value or "" for name, value in attrs}
        assert len(values) == len(attrs)
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if tag == "data" and "id" in values:
            self.data[values["id"]] = values["value"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self.tables.append(set())
        if tag in {"caption", "thead", "tbody"}:
            self.tables[-1].add(tag)
        if tag == "th":
            assert "scope" in values
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        assert self.open.pop() == tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A run in which every foreign name is an attack."""
    scene = ran(tmp_path_factory.mktemp("hostile"), hostile=HOSTILE)
    (use,) = scene.summary.deployments
    return again(
        scene,
        job=HOSTILE,
        reason=f"refused: {HOSTILE}",
        state="refused",
        exit_code=3,
        deployments=(replace(use, set_aside=HOSTILE), replace(use, name=HOSTILE)),
    )


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """A run with many attempts of two deployments, over two days."""
    return filed(ran(tmp_path_factory.mktemp("large")), busy(4000), a_file=1500)


def _text(scene: Scene) -> str:
    return render(read_report(scene.root, now=NOW))


def test_the_figures_are_those_of_the_summary(large: Scene) -> None:
    page = Page.of(_text(large))
    summary = json.loads((large.root / "_pipeline" / "summary.json").read_text())

    assert {name: float(value) for name, value in page.data.items()} == {
        "exit-code": 1,
        "rows-ok": summary["rows"]["ok"],
        "rows-failed": summary["rows"]["failed"],
        "rows-total": summary["rows"]["total"],
        "rows-pending": 0,
        "requests": summary["requests"],
        "attempts": summary["attempts"],
        "throttled": summary["throttled"],
        "tokens-input": summary["tokens"]["input"],
        "tokens-output": summary["tokens"]["output"],
        "tokens-cached": summary["tokens"]["cached"],
        "cost": summary["cost_usd"],
        "seconds": summary["seconds"],
        "rows-per-second": summary["rows_per_second"],
    }
    assert summary["rows"] == {"total": 20, "ok": 18, "failed": 2, "pending": 0, "not_in_parts": 0}
    assert summary["cost_usd"] > 0


def test_the_figures_of_attempts_are_theirs(tmp_path: Path) -> None:
    scene = ran(tmp_path)
    report = read_report(scene.root, now=NOW)

    assert report.attempts.count == scene.summary.attempts
    assert sum(one.throttled for one in report.deployments) == scene.summary.throttled == 2
    assert sum(one.tokens for one in report.deployments) == scene.summary.tokens.total
    assert [(kind.code, kind.rows) for kind in report.failed.kinds] == [("row", 2)]
    assert [one.ordinal for one in report.failed.kinds[0].examples] == [4, 11]
    assert [one.id for one in report.failed.kinds[0].examples] == ["row 4", "row 11"]
    assert sum(slot.count for slot in report.slots) == sum(one.answered for one in report.deployments) == 18


def test_nothing_foreign_becomes_part_of_the_page(hostile: Scene) -> None:
    text = _text(hostile)
    page = Page.of(text)

    assert not {"script", "img", "iframe", "object", "link", "a "} & set(page.tags)
    assert not [one for one in page.attributes if one[1].startswith("on") or one[1] == "style"]
    assert text.count("</style>") == 1
    assert not {"\x1b", "\u202e"} & set(text)
    assert "{{ 7 * 7 }}" in page.text
    assert "49" not in Page.of(_text(hostile)).texts
    shown = "</style><script>alert(1)</script><img src=x onerror=alert(2)>\\u202egnp\\x1b[31m&amp;\"'`{{ 7 * 7 }}"
    assert page.text.count(shown) > 5


@pytest.mark.parametrize("name", ["hostile", "large"])
def test_no_prompt_no_answer_and_nothing_that_the_service_said_of_a_row_is_there(
    name: str, request: pytest.FixtureRequest
) -> None:
    text = _text(request.getfixturevalue(name))

    assert PROMPT not in text
    assert QUOTE not in text
    assert "answer to" not in text


def test_the_page_loads_nothing_and_only_its_own_style_applies(large: Scene) -> None:
    text = _text(large)
    page = Page.of(text)
    (policy,) = [value for tag, name, value in page.attributes if (tag, name) == ("meta", "content") and "src" in value]
    (style,) = re.findall("<style>(.*?)</style>", text, re.DOTALL)

    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert base64.b64encode(sha256(style.encode()).digest()).decode() in policy
    assert "unsafe" not in policy
    assert "url(" not in style
    assert "@import" not in style
    assert not [one for one in page.attributes if one[1] in {"src", "srcset", "action", "data"}]
    assert {value for _, name, value in page.attributes if name == "href"} == {"#content"}
    assert "http://" not in text
    assert "https://" not in text


@pytest.mark.parametrize("name", ["hostile", "large"])
def test_the_page_can_be_read_without_seeing_it(name: str, request: pytest.FixtureRequest) -> None:
    page = Page.of(_text(request.getfixturevalue(name)))
    ids = Counter(value for _, attribute, value in page.attributes if attribute == "id")
    labels = {value for _, attribute, value in page.attributes if attribute == "aria-labelledby"}

    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(page.headings, page.headings[1:], strict=False))
    assert max(ids.values()) == 1
    assert labels <= set(ids)
    assert all(table == {"caption", "thead", "tbody"} for table in page.tables)
    assert page.tags["main"] == page.tags["header"] == page.tags["footer"] == 1
    assert ("html", "lang", "en") in page.attributes
    drawn = [value for tag, attribute, value in page.attributes if (tag, attribute) == ("svg", "role")]
    named = [value for tag, attribute, value in page.attributes if (tag, attribute) == ("svg", "aria-label")]
    assert drawn == ["img"] * len(named)
    assert len(named) == page.tags["figure"]
    assert all(len(value) > 20 for value in named)


def _colors(style: str, theme: str) -> dict[str, str]:
    blocks = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", blocks[0 if theme == "light" else 1]))


def _luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_and_charts_have_the_contrast_of_wcag_aa(theme: str) -> None:
    colors = _colors((VIEWS / "report.css").read_text(), theme)
    texts = [(text, back) for text in ("text", "dim", "link") for back in ("page", "card")]
    texts += [(kind, f"{kind}-back") for kind in ("good", "warn", "bad", "info")]
    texts += [("text", "code"), ("text", "warn-back")]
    shapes = [(shape, "card") for shape in ("bar", "bar-throttled", "bar-failed", "quota", "dim")]

    assert len(colors) == 20
    assert {
        pair: _contrast(*(colors[name] for name in pair))
        for pair in texts
        if _contrast(*(colors[n] for n in pair)) < 4.5
    } == {}
    assert {pair: 0 for pair in shapes if _contrast(*(colors[name] for name in pair)) < 3} == {}


def test_the_template_trusts_nothing_but_its_own_style() -> None:
    assert re.findall(r"\|\s*safe", (VIEWS / "report.html.jinja").read_text()) == ["| safe"]


COUNTS = RowCounts(total=10, ok=10, pending=0)
OUTCOMES = [
    (
        Summary(state="complete", exit_code=0, rows=COUNTS, seconds=5, rows_per_second=2, cost_usd=0.5),
        "All 10 rows were answered in 5.0 s. It cost $0.5000.",
    ),
    (
        Summary(state="complete", exit_code=0, rows=COUNTS, seconds=5),
        "All 10 rows were answered. Nothing was left for the last invocation to do.",
    ),
    (
        Summary(
            state="complete",
            exit_code=1,
            rows=RowCounts(total=10, ok=8, failed=2, pending=0),
            seconds=5,
            rows_per_second=2,
        ),
        "8 rows were answered, 2 failed in 5.0 s.",
    ),
    (
        Summary(state="running", rows=RowCounts(ok=3), seconds=5, eta_seconds=60),
        "The run goes on: 3 rows done in 5.0 s, 0 of them failed. About 1 min 0 s are left.",
    ),
    (
        Summary(state="refused", exit_code=3, rows=RowCounts(total=10, ok=3, pending=7), seconds=5, cost_usd=2.0),
        "The service refused to go on: 3 of 10 rows done in 5.0 s, 0 of them failed. It has cost $2.00 so far.",
    ),
    (
        Summary(state="stopped", exit_code=4, rows=RowCounts(total=10, ok=3, pending=7), seconds=5),
        "It ended before its rows did: 3 of 10 rows done in 5.0 s, 0 of them failed. 7 rows still to be asked.",
    ),
    (
        Summary(state="interrupted", exit_code=143, rows=RowCounts(ok=3), seconds=5),
        "It ended before its rows did: 3 rows done in 5.0 s, 0 of them failed.",
    ),
    (
        Summary(
            state="complete",
            exit_code=0,
            fine_tuned_model="m2",
            training=TrainingState(job="j", state="succeeded", model="m", examples=9),
        ),
        "m was trained on 9 examples: the model is m2.",
    ),
    (
        Summary(state="running", training=TrainingState(job="j", state="running", model="m", examples=9)),
        "The training of m on 9 examples is running (j).",
    ),
    (
        Summary(
            state="refused",
            exit_code=2,
            rows=RowCounts(total=3, ok=1, failed=2, pending=0),
            training=TrainingState(model="m"),
        ),
        "No training of m was begun. Refused: 1 row ok, 2 failed.",
    ),
]


@pytest.mark.parametrize(("summary", "said"), OUTCOMES)
def test_the_outcome_is_a_sentence(summary: Summary, said: str) -> None:
    assert outcome(summary) == said


@pytest.mark.parametrize("summary", [summary for summary, _ in OUTCOMES])
def test_every_state_gives_a_page(hostile: Scene, summary: Summary) -> None:
    page = Page.of(render(replace(read_report(hostile.root, now=NOW), summary=summary)))

    assert page.data["rows-ok"] == str(summary.rows.ok)


def test_a_killed_runs_folder_gives_a_page_that_says_so(tmp_path: Path) -> None:
    scene = again(ran(tmp_path), state="running", exit_code=None)
    (scene.root / "_pipeline" / "checksums.json").unlink()

    page = Page.of(_text(scene))
    assert "Interrupted" in page.text
    assert "killed, or the machine stopped" in page.text


def test_damaged_files_are_named_and_the_rest_is_told(large: Scene, tmp_path: Path) -> None:
    scene = filed(ran(tmp_path), map(attempt, range(40)), a_file=20)
    broken = min((scene.root / "_pipeline" / "attempts").iterdir())
    broken.write_bytes(b"nothing")
    part = next(path for path in sorted(scene.root.glob("part-*")))
    part.write_bytes(b"nothing")

    page = Page.of(_text(scene))
    assert broken.name in page.text
    assert part.name in page.text
    assert "pipeline verify" in page.text

    (scene.root / "_pipeline" / "journal" / "00.sqlite").unlink()
    assert "_pipeline/journal/00.sqlite" in Page.of(_text(scene)).text


def test_the_page_of_a_training_has_its_loss_and_its_checkpoints(tmp_path: Path) -> None:
    scene = again(
        ran(tmp_path),
        fine_tuned_model=HOSTILE,
        training=TrainingState(job="ftjob-1", state="succeeded", model="gpt", examples=20, trained_tokens=99),
    )
    lines = "\n".join(f"{step},{2 / step},{3 / step}" for step in range(1, 2001))
    write_metrics(scene.root / "metrics.parquet", f"step,train_loss,valid_loss\n{lines}".encode(), compression="zstd")
    names = ("train_loss", "valid_loss", "full_valid_loss")
    usual = {"created_at": None, "level": "info", "message": None, "id": "e", **dict.fromkeys(names)}
    rows = [
        {**usual, "ordinal": 0, "type": "metrics", "step": 1, "checkpoint": None},
        {**usual, "ordinal": 1, "type": "checkpoint", "step": 7, "checkpoint": "model-at-7", "full_valid_loss": 0.25},
    ]
    write_events(scene.root / "events.parquet", rows, compression="zstd")

    report = read_report(scene.root, now=NOW)
    page = Page.of(render(report))
    assert report.loss is not None
    assert (
        report.loss.text
        == "training loss went from 2 to 0.001; validation loss went from 3 to 0.0015; over steps 1 to 2,000."
    )
    assert all(len(line.points.split()) <= 302 for line in report.loss.lines)
    assert "model-at-7" in page.text
    assert "0.2500" in page.text
    assert page.data["trained-tokens"] == "99"


def test_batches_on_their_way_are_listed(tmp_path: Path) -> None:
    scene = ran(tmp_path)
    report = read_report(scene.root, now=NOW)
    record = BatchRecord(
        tag="t", deployment=HOSTILE, step=BatchStep.SUBMITTED, since=NOW, endpoint="/x", count=1234, bytes=1, tokens=1
    )
    page = Page.of(render(replace(report, batches=(record,))))
    assert "1,234" in page.text
    assert "submitted" in page.text


def test_what_was_predicted_stands_beside_what_it_came_to() -> None:
    actual = Summary(state="complete", requests=110, cost_usd=0.9, seconds=30.0).as_json()
    predicted = {"requests": 100, "tokens": {"input": 50, "output": 0}, "cost_usd": 1.0, "seconds": 60.0}

    found = forecasts({**actual, "predicted": predicted})
    assert [(one.name, one.predicted, one.actual, one.off) for one in found] == [
        ("requests", "100", "110", "+10%"),
        ("tokens in", "50", "0", "-100%"),
        ("tokens out", "0", "0", "\N{EN DASH}"),
        ("cost", "$1.00", "$0.9000", "-10%"),
        ("time", "1 min 0 s", "30 s", "-50%"),
    ]
    assert [one.name for one in forecasts({**actual, "predicted": {"requests": 7}})] == ["requests"]
    near = [forecasts({**actual, "predicted": {"requests": requests}})[0].off for requests in (110, 110.2, 109.8, 109)]
    assert near == ["0%", "<1%", "<1%", "+1%"]
    assert forecasts(actual) == forecasts({**actual, "predicted": None}) == []


def test_the_page_lies_in_the_run_and_is_private(tmp_path: Path) -> None:
    scene = ran(tmp_path)
    path = write_report(scene.root, now=NOW)

    assert path == scene.root / "_pipeline" / "report.html"
    assert path.stat().st_mode & 0o777 == 0o600
    assert datetime.fromtimestamp(NOW, UTC).strftime("%H:%M:%S") in path.read_text()
    assert not list(path.parent.glob(f"*{TEMPORARY_SUFFIX}"))

    elsewhere = write_report(scene.root, now=NOW, path=tmp_path / "page.html")
    assert elsewhere.read_text() == path.read_text()
    assert [one.name for one in tmp_path.glob("page*")] == ["page.html"]


def test_the_same_folder_gives_the_same_page(large: Scene) -> None:
    assert _text(large) == _text(large)


def test_as_json_the_figures_are_plain_values(large: Scene) -> None:
    value = json.loads(json.dumps(read_report(large.root, now=NOW).as_json(), default=str))

    assert value["summary"] == json.loads((large.root / "_pipeline" / "summary.json").read_text())
    assert sum(one["attempts"] for one in value["deployments"]) == 4000
    assert value["latency_ms"][0]["deployment"] is None
