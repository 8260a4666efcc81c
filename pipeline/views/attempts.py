"""What a run's attempts come to, read once in batches: kinds of endings, latencies, use of quotas over time."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.store.journal import JournalReader
from pipeline.store.parts import attempts_batch

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.store.folder import Layout

EXAMPLES = 3
"""Attempts of a kind that are kept with their ids."""
MOST_KINDS = 200
"""Kinds told apart; a service that makes up a code for each refusal would fill the memory."""
MOST_BINS = 4_096
"""Moments told apart; their width doubles when there would be more."""
MOST_WAITS = 4_096
"""Separate pauses told apart a deployment; the nearest are joined when there are twice as many."""
BINS_A_DOUBLING = 64
"""Bins of latencies between a figure and its double: a percentile is right within 0.6 %."""
OTHER = "(others)"
_BATCH_ROWS = 16_384
_COLUMNS = (
    *("ordinals", "deployment", "started_at", "latency_ms", "status", "verdict", "code", "client_request_id"),
    *("request_id", "apim_request_id", "input_tokens", "output_tokens", "retry_after_ms"),
)
_ANSWERED, _THROTTLED = "answered", "throttled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One attempt, as an example of its kind. `ordinal` is its first row's."""

    ordinal: int | None
    started_at: datetime
    client_request_id: str | None
    request_id: str | None
    apim_request_id: str | None


@dataclass(slots=True, kw_only=True)
class Kind:
    """Attempts at one deployment that ended alike; `status` and `code` are None where there was none."""

    deployment: str
    verdict: str
    status: int | None
    code: str | None
    attempts: int = 0
    examples: list[Sent] = field(default_factory=list)


@dataclass(slots=True)
class Latencies:
    """How long answers took, in logarithmic bins: flat in memory, percentiles within 0.6 %. Milliseconds."""

    bins: Counter[int] = field(default_factory=Counter)
    count: int = 0
    least: float = math.inf
    most: float = 0.0

    def percentile(self, share: float) -> float | None:
        """The latency that `share` of the answers did not pass; None without answers."""
        if not self.count:
            return None
        left = share * self.count
        for number, count in sorted(self.bins.items()):
            left -= count
            if left <= 0:
                return min(max(_middle(number), self.least), self.most)
        return self.most

    def between(self, low: float, high: float) -> int:
        """How many answers took from `low` to below `high`, as far as bins tell."""
        return sum(count for number, count in self.bins.items() if low <= _middle(number) < high)


@dataclass(slots=True)
class Moment:
    """What began in one moment at one deployment. `tokens` are the service's count, `rows` those answered."""

    requests: int = 0
    answered: int = 0
    throttled: int = 0
    tokens: int = 0
    rows: int = 0

    def add(self, other: Moment) -> None:
        """Count another one in."""
        self.requests += other.requests
        self.answered += other.answered
        self.throttled += other.throttled
        self.tokens += other.tokens
        self.rows += other.rows


@dataclass(slots=True)
class Timeline:
    """Moments by deployment and number; moment n covers `width_s` seconds from n times `width_s` (epoch) on."""

    width_s: int = 1
    moments: dict[str, dict[int, Moment]] = field(default_factory=dict)

    def add(self, deployment: str, second: int, moment: Moment) -> None:
        """Count what began in a second."""
        mine = self.moments.setdefault(deployment, {})
        mine.setdefault(second // self.width_s, Moment()).add(moment)
        while len(mine) > MOST_BINS:
            self._widen()
            mine = self.moments[deployment]

    def _widen(self) -> None:
        self.width_s *= 2
        for deployment, moments in self.moments.items():
            wider: dict[int, Moment] = {}
            for number, moment in moments.items():
                wider.setdefault(number // 2, Moment()).add(moment)
            self.moments[deployment] = wider


@dataclass(slots=True)
class Pauses:
    """Stretches of time in which a deployment had told us to wait; those that overlap count once. Epoch seconds."""

    starts: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)

    def add(self, start: float, end: float) -> None:
        """Count a stretch in."""
        first, last = bisect_left(self.ends, start), bisect_right(self.starts, end)
        if first < last:
            start, end = min(start, self.starts[first]), max(end, self.ends[last - 1])
        self.starts[first:last], self.ends[first:last] = [start], [end]
        if len(self.starts) > 2 * MOST_WAITS:
            self._join()

    def _join(self) -> None:
        """Join the stretches that are nearest to one another, until `MOST_WAITS` are left."""
        gaps = [start - end for start, end in zip(self.starts[1:], self.ends, strict=False)]
        joined = set(sorted(range(len(gaps)), key=gaps.__getitem__)[: len(self.starts) - MOST_WAITS])
        self.starts = [start for place, start in enumerate(self.starts) if place - 1 not in joined]
        self.ends = [end for place, end in enumerate(self.ends) if place not in joined]

    def seconds(self, *, until: float) -> float:
        """How long they were in all, up to a moment."""
        return sum(
            max(0.0, min(end, until) - start)
            for start, end in zip(self.starts, self.ends, strict=True)
            if start < until
        )


@dataclass(slots=True)
class Attempts:
    """All attempts of a folder's life. `unread` names files that are missing or damaged; times are epoch seconds."""

    count: int = 0
    first_at: float = math.inf
    last_at: float = 0.0
    kinds: dict[tuple[str, str, int | None, str | None], Kind] = field(default_factory=dict)
    latencies: dict[str, Latencies] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=Timeline)
    pauses: dict[str, Pauses] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    @property
    def all_latencies(self) -> Latencies:
        """Those of every deployment together."""
        found = Latencies()
        for one in self.latencies.values():
            found.bins.update(one.bins)
            found.count += one.count
            found.least, found.most = min(found.least, one.least), max(found.most, one.most)
        return found

    def told_to_wait_s(self, deployment: str) -> float:
        """Seconds for which a deployment had told us to wait, until the last attempt ended."""
        pauses = self.pauses.get(deployment)
        return 0.0 if pauses is None else pauses.seconds(until=self.last_at)

    def add(self, batch: pa.RecordBatch) -> None:
        """Count a batch of attempts in; its columns are those of `attempts_schema`."""
        if not batch.num_rows:
            return
        import pyarrow as pa  # noqa: PLC0415 - for commands that read rows
        import pyarrow.compute as pc  # noqa: PLC0415

        self.count += batch.num_rows
        table = pa.table(
            {
                "deployment": batch.column("deployment"),
                "verdict": batch.column("verdict"),
                "status": batch.column("status"),
                "code": batch.column("code"),
                "latency_ms": batch.column("latency_ms"),
                "at_us": batch.column("started_at").cast(pa.int64()),
                "second": pc.divide(batch.column("started_at").cast(pa.int64()), 1_000_000),
                "tokens": pc.add(
                    pc.coalesce(batch.column("input_tokens"), 0), pc.coalesce(batch.column("output_tokens"), 0)
                ),
                "rows": pc.list_value_length(batch.column("ordinals")),
                "retry_after_ms": batch.column("retry_after_ms"),
                "place": pa.array(range(batch.num_rows), pa.int64()),
            }
        )
        self.first_at = min(self.first_at, pc.min(table["at_us"]).as_py() / 1e6)
        ends = pc.add(table["at_us"].cast(pa.float64()), pc.multiply(table["latency_ms"], 1000.0))
        self.last_at = max(self.last_at, pc.max(ends).as_py() / 1e6)
        self._add_kinds(table, batch)
        self._add_latencies(table)
        self._add_moments(table)
        self._add_pauses(table)

    def _add_kinds(self, table: pa.Table, batch: pa.RecordBatch) -> None:
        groups = table.group_by(["deployment", "verdict", "status", "code"]).aggregate([("place", "count")])
        for group in groups.to_pylist():
            key = group["deployment"], group["verdict"], group["status"], group["code"]
            if key not in self.kinds and len(self.kinds) >= MOST_KINDS:
                key = OTHER, group["verdict"], None, OTHER
            kind = self.kinds.get(key)
            if kind is None:
                kind = self.kinds[key] = Kind(deployment=key[0], verdict=key[1], status=key[2], code=key[3])
            kind.attempts += group["place_count"]
        self._add_examples(table, batch)

    def _add_examples(self, table: pa.Table, batch: pa.RecordBatch) -> None:
        """Keep the first few of each kind that was no answer."""
        import pyarrow.compute as pc  # noqa: PLC0415 - for commands that read rows

        failed = table.filter(pc.not_equal(table["verdict"], _ANSWERED))
        for group, places in first_places(failed, ["deployment", "verdict", "status", "code"]):
            kind = self.kinds.get((group["deployment"], group["verdict"], group["status"], group["code"]))
            if kind is not None:
                kind.examples += [_sent(batch, place) for place in places[: EXAMPLES - len(kind.examples)]]

    def _add_latencies(self, table: pa.Table) -> None:
        """Count answers of a request each; lines of a batch have no latency of their own."""
        import pyarrow.compute as pc  # noqa: PLC0415 - for commands that read rows

        timed = table.filter(pc.and_(pc.equal(table["verdict"], _ANSWERED), pc.greater(table["latency_ms"], 0.0)))
        if not timed.num_rows:
            return
        number = pc.floor(pc.multiply(pc.log2(timed["latency_ms"]), float(BINS_A_DOUBLING)))
        bins = timed.append_column("bin", number.cast("int64")).group_by(["deployment", "bin"])
        for group in bins.aggregate(
            [("latency_ms", "count"), ("latency_ms", "min"), ("latency_ms", "max")]
        ).to_pylist():
            mine = self.latencies.setdefault(group["deployment"], Latencies())
            mine.bins[group["bin"]] += group["latency_ms_count"]
            mine.count += group["latency_ms_count"]
            mine.least = min(mine.least, group["latency_ms_min"])
            mine.most = max(mine.most, group["latency_ms_max"])

    def _add_moments(self, table: pa.Table) -> None:
        columns = table.group_by(["deployment", "second", "verdict"]).aggregate(
            [("place", "count"), ("tokens", "sum"), ("rows", "sum")]
        )
        for group in columns.to_pylist():
            count, answered = group["place_count"], group["verdict"] == _ANSWERED
            moment = Moment(
                requests=count,
                answered=count if answered else 0,
                throttled=count if group["verdict"] == _THROTTLED else 0,
                tokens=group["tokens_sum"] or 0,
                rows=(group["rows_sum"] or 0) if answered else 0,
            )
            self.timeline.add(group["deployment"], group["second"], moment)

    def _add_pauses(self, table: pa.Table) -> None:
        import pyarrow.compute as pc  # noqa: PLC0415 - for commands that read rows

        told = pc.and_(pc.equal(table["verdict"], _THROTTLED), pc.greater(table["retry_after_ms"], 0.0))
        for one in table.filter(told).select(["deployment", "at_us", "latency_ms", "retry_after_ms"]).to_pylist():
            start = one["at_us"] / 1e6 + one["latency_ms"] / 1000
            self.pauses.setdefault(one["deployment"], Pauses()).add(start, start + one["retry_after_ms"] / 1000)


def read_attempts(layout: Layout) -> Iterator[pa.RecordBatch | Path]:
    """Every attempt once, in batches; also while the run goes on. A file that cannot be read comes as its path.

    Raises DamageError, StorageError for a journal that cannot be read; without a journal there are those of files.
    """
    import pyarrow as pa  # noqa: PLC0415 - for commands that read rows
    import pyarrow.parquet as pq  # noqa: PLC0415

    # The journal comes first: what it gives to a file meanwhile is known by its number.
    first: int | None = None
    try:
        with JournalReader(layout.journal) as reader:
            for chunk in reader.attempts_at_once():
                first = chunk[0][0] if first is None else first
                yield attempts_batch([attempt for _, attempt in chunk])
    except FileNotFoundError:
        pass
    for path in sorted(layout.attempts.glob("attempts-*-*.parquet")):
        if first is not None and _last_number(path) >= first:
            continue
        try:
            with pq.ParquetFile(path) as file:
                yield from file.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS))
        except (OSError, pa.ArrowException):
            yield path


def all_attempts(layout: Layout) -> Attempts:
    """Count every attempt of a folder; memory does not grow with their number. Raises as `read_attempts`."""
    found = Attempts()
    for batch in read_attempts(layout):
        if isinstance(batch, Path):
            found.unread.append(batch.name)
        else:
            found.add(batch)
    return found


def first_places(table: pa.Table, keys: Sequence[str]) -> Iterator[tuple[dict[str, Any], list[int]]]:
    """Of each group of rows that agree in `keys`: their values, and the column `place` of its first few rows."""
    import pyarrow as pa  # noqa: PLC0415 - for commands that read rows
    import pyarrow.compute as pc  # noqa: PLC0415

    found: dict[tuple[Any, ...], tuple[dict[str, Any], list[int]]] = {}
    for _ in range(EXAMPLES):
        taken = []
        for group in table.group_by(list(keys)).aggregate([("place", "min")]).to_pylist():
            taken.append(group.pop("place_min"))
            found.setdefault(tuple(group.values()), (group, []))[1].append(taken[-1])
        table = table.filter(pc.invert(pc.is_in(table["place"], pa.array(taken, pa.int64()))))
    yield from found.values()


def _last_number(path: Path) -> int:
    """The number of the last attempt in a file, by its name; 0 for a name that is not ours."""
    number = path.stem.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


def _middle(number: int) -> float:
    return float(2 ** ((number + 0.5) / BINS_A_DOUBLING))


def _sent(batch: pa.RecordBatch, place: int) -> Sent:
    row: dict[str, Any] = batch.slice(place, 1).to_pylist()[0]
    return Sent(
        ordinal=row["ordinals"][0] if row["ordinals"] else None,
        started_at=row["started_at"].astimezone(UTC),
        client_request_id=row["client_request_id"],
        request_id=row["request_id"],
        apim_request_id=row["apim_request_id"],
    )
