"""Prints the passages nearest to each demo question, from the Parquet that two embedding jobs wrote.

    python sample_data/nearest.py out/embed-passages.simulated out/embed-questions.simulated

Exits 0 when every question's own passage is among its three nearest, 1 when one is missing, 2 when there is
nothing to compare.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

NEAREST = 3
FIRST_WORDS = 12


def ok_rows(folder: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read the embedded rows of an output folder, in the order of the input.

    Raises FileNotFoundError when the folder holds no part, KeyError when its parts lack a column.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise FileNotFoundError(folder)
    wanted = [*columns, "status", "embedding"]
    table = pa.concat_tables([pq.ParquetFile(part).read(columns=wanted) for part in parts])
    table = table.select(wanted)
    return [row for row in table.to_pylist() if row["status"] == "ok"]


def cosine(a: Sequence[float], b: Sequence[float]) -> float:
    """Compare two vectors of the same size by their direction: 1 for the same, 0 for nothing in common.

    Raises ValueError when their sizes differ.
    """
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / (math.hypot(*a) * math.hypot(*b))


def nearest(
    question: Sequence[float], passages: Iterable[Mapping[str, Any]], count: int = NEAREST
) -> list[tuple[float, Mapping[str, Any]]]:
    """Find the `count` passages whose `embedding` is closest to the question's, the closest first."""
    scored = [(cosine(question, passage["embedding"]), passage) for passage in passages]
    return sorted(scored, key=lambda pair: -pair[0])[:count]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two output folders and return the exit code."""
    parser = argparse.ArgumentParser(description="Print the passages nearest to each demo question.")
    parser.add_argument("passages", type=Path, help="what jobs/embed_passages.yaml wrote")
    parser.add_argument("questions", type=Path, help="what jobs/embed_questions.yaml wrote")
    folders = parser.parse_args(arguments)
    try:
        passages = ok_rows(folders.passages, ["passage_id", "title", "text"])
        questions = ok_rows(folders.questions, ["question_id", "question", "passage_id"])
    except FileNotFoundError as error:
        print(f"{error}: no results here; run the job first", file=sys.stderr)
        return 2
    except KeyError as error:
        print(f"{error}: are the folders in the right order?", file=sys.stderr)
        return 2
    if not passages or not questions:
        print("no row was embedded; `pipeline errors` tells why", file=sys.stderr)
        return 2
    if len({len(row["embedding"]) for row in (*passages, *questions)}) > 1:
        print("the vectors differ in size: give both jobs the same `dimensions`", file=sys.stderr)
        return 2
    missing = 0
    for question in questions:
        print(question["question"])
        found = nearest(question["embedding"], passages)
        for score, passage in found:
            words = " ".join(passage["text"].split()[:FIRST_WORDS])
            print(f"  {score:.3f}  {passage['passage_id']}  {passage['title']}: {words} …")
        if question["passage_id"] not in {passage["passage_id"] for _, passage in found}:
            missing += 1
            print(f"  expected {question['passage_id']}, which is not among them")
        print()
    print(f"{len(questions) - missing} of {len(questions)} questions found their passage")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
