"""Prints what a transcription job heard in the sample recordings, and how many of their words it got wrong.

    python sample_data/word_error_rate.py out/transcribe-recordings.simulated --most 35

Exits 0 when the word error rate of all recordings together is within the bound, 1 when it is above it or a recording
is missing, 2 when there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

REFERENCE = Path(__file__).parent / "recordings.jsonl"
MOST_PERCENT = 35.0


def spoken(reference: Path) -> dict[str, str]:
    """Read what is said in each recording, by its id. Raises OSError, KeyError, or ValueError for what is no JSON."""
    with reference.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    return {row["id"]: row["text"] for row in rows}


def heard(folder: Path) -> dict[str, str]:
    """Read what a job heard in each recording, by its id; failed rows are left out.

    Raises FileNotFoundError when the folder holds no part, KeyError when its parts lack a column.
    """
    parts = sorted(folder.glob("part-*.parquet"))
    if not parts:
        raise FileNotFoundError(folder)
    wanted = ["id", "status", "output_text"]
    table = pa.concat_tables([pq.ParquetFile(part).read(columns=wanted) for part in parts]).select(wanted)
    return {row["id"]: row["output_text"] or "" for row in table.to_pylist() if row["status"] == "ok"}


def words(text: str) -> list[str]:
    """Give a text's words in small letters, without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def errors(said: Sequence[str], understood: Sequence[str]) -> int:
    """Count the words to be changed, added or left out to make one text of the other (Levenshtein's distance)."""
    before = list(range(len(understood) + 1))
    for row, word in enumerate(said, start=1):
        current = [row]
        for column, other in enumerate(understood, start=1):
            changed = before[column - 1] + (word != other)
            current.append(min(changed, before[column] + 1, current[-1] + 1))
        before = current
    return before[-1]


def report(texts: Mapping[str, str], found: Mapping[str, str]) -> float:
    """Print each recording with its own rate and return the rate of all of them, in percent of the words said."""
    wrong = total = 0
    for name, text in texts.items():
        said, understood = words(text), words(found.get(name, ""))
        count = errors(said, understood)
        wrong += count
        total += len(said)
        print(f"{100 * count / len(said):5.1f} %  {name}: {found.get(name, '(missing)')}")
        if count:
            print(f"         said: {text}")
    return 100 * wrong / total


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare an output folder with what was said and return the exit code."""
    parser = argparse.ArgumentParser(description="Print what was heard and the word error rate.")
    parser.add_argument("folder", type=Path, help="what the transcription job wrote")
    parser.add_argument("--reference", type=Path, default=REFERENCE, help="JSON lines with id and text")
    parser.add_argument("--most", type=float, default=MOST_PERCENT, metavar="PERCENT", help="the bound")
    options = parser.parse_args(arguments)
    try:
        texts, found = spoken(options.reference), heard(options.folder)
    except FileNotFoundError as error:
        print(f"{error}: no results here; run the job first", file=sys.stderr)
        return 2
    except (KeyError, OSError, ValueError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    if not any(words(text) for text in texts.values()) or not found:
        print("no recording was heard; `pipeline errors` tells why", file=sys.stderr)
        return 2
    rate = report(texts, found)
    missing = [name for name in texts if name not in found]
    print(f"\n{rate:.1f} % of the words are wrong in {len(texts)} recordings; the bound is {options.most:g} %")
    if missing:
        print(f"missing: {', '.join(missing)}", file=sys.stderr)
    return 1 if missing or rate > options.most else 0


if __name__ == "__main__":
    sys.exit(main())
