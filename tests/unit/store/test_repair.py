"""What a repair plans: findings in, actions out, and nothing touched."""

from __future__ import annotations

import pytest

from pipeline.store.journal import Part
from pipeline.store.parts import part_name
from pipeline.store.repair import Action, AskAgain, LoseAttempts, RebuildIds, RebuildJournal, Reopen, SetAside, plan
from pipeline.store.verify import Finding, Kind


def part(first: int) -> Part:
    return Part(
        first=first,
        last=first + 9,
        name=part_name(first, first + 9),
        ok=10,
        failed=0,
        bytes=1,
        sha256="",
        digest="",
        generation=0,
        start="",
        finish="",
    )


PARTS = [part(0), part(10)]


def found(kind: Kind, file: str) -> Finding:
    return Finding(kind=kind, file=file, message="", advice="")


JOURNAL = found(Kind.JOURNAL, "_pipeline/journal/00.sqlite")
SECOND = found(Kind.PART, PARTS[1].name)
MEDIA = [found(Kind.MEDIA, f"media/{ordinal:012d}.mp3") for ordinal in (3, 12, 25)]
MANIFEST = found(Kind.WRITTEN_ANEW, "_pipeline/manifest.json")
STRAY = found(Kind.STRAY, "part-000000000020-000000000029.parquet")
ATTEMPTS = found(Kind.ATTEMPTS, "_pipeline/attempts/a.parquet")
IDS = found(Kind.IDS, "_pipeline/journal/ids.sqlite")

PLANS: dict[str, tuple[list[Finding], tuple[Action, ...]]] = {
    "nothing": ([], ()),
    "the journal comes first and alone": ([SECOND, JOURNAL, MANIFEST, IDS], (RebuildJournal(),)),
    "a part is opened once": ([SECOND, SECOND], (Reopen(first=10),)),
    "a part that the journal does not count is no range": ([found(Kind.PART, "part-x.parquet")], ()),
    "a file of a row in a part opens the part": (
        [MEDIA[0]],
        (Reopen(first=0, without=frozenset({3})), SetAside(file=MEDIA[0].file)),
    ),
    "a file of a row in no part has the row asked again": (
        [MEDIA[2]],
        (AskAgain(ordinals=frozenset({25})), SetAside(file=MEDIA[2].file)),
    ),
    "a part and a file of one of its rows": (
        [SECOND, MEDIA[1]],
        (Reopen(first=10, without=frozenset({12})), SetAside(file=MEDIA[1].file)),
    ),
    "what tells is moved aside": ([MANIFEST, STRAY], (SetAside(file=MANIFEST.file), SetAside(file=STRAY.file))),
    "attempts are lost, ids come last": ([IDS, ATTEMPTS], (LoseAttempts(files=(ATTEMPTS.file,)), RebuildIds())),
    "the input is not repaired": ([found(Kind.INPUT, "the input")], ()),
}


@pytest.mark.parametrize("case", PLANS)
def test_findings_become_actions(case: str) -> None:
    findings, actions = PLANS[case]
    assert plan(findings, PARTS) == actions
