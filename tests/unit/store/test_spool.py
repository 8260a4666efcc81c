"""Spools: the cells of open ranges, private, rebuilt at will."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.errors import DamageError, StorageError
from pipeline.store.spool import SpoolWriter, read_spool, spool_path, spooled_rows

SCHEMA = pa.schema([pa.field("a", pa.int64()), pa.field("b", pa.dictionary(pa.int32(), pa.string()))])


def batch(*numbers: int) -> pa.RecordBatch:
    texts = pa.array([f"t{number}" for number in numbers]).dictionary_encode()
    return pa.RecordBatch.from_arrays([pa.array(numbers, pa.int64()), texts], schema=SCHEMA)


def write(path: Path, *batches: pa.RecordBatch) -> SpoolWriter:
    writer = SpoolWriter(path, SCHEMA)
    for one in batches:
        writer.write(one)
    writer.close()
    return writer


def test_cells_come_back_in_order_whatever_their_dictionaries(tmp_path: Path) -> None:
    path = spool_path(tmp_path, 70)
    assert path.name == "000000000070.arrow"
    writer = write(path, batch(1, 2), batch(), batch(3))
    assert pa.Table.from_batches(list(read_spool(path))).column("b").to_pylist() == ["t1", "t2", "t3"]
    assert spooled_rows(path) == 3
    assert 0 < writer.bytes <= path.stat().st_size


def test_a_spool_is_private_and_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    path.write_text("old")
    path.chmod(0o644)
    write(path, batch(1))
    assert spooled_rows(path) == 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_in_its_place_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = tmp_path / "x.arrow"
    path.symlink_to(victim)
    write(path, batch(1))
    assert victim.read_text() == "mine"


def test_no_spool_holds_no_rows(tmp_path: Path) -> None:
    assert spooled_rows(tmp_path / "x.arrow") == 0


def test_a_cut_spool_is_damage_never_fewer_cells_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    write(path, batch(*range(100)))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 8, 97):
        path.write_bytes(whole[:length])
        try:
            rows = spooled_rows(path)
        except (DamageError, StorageError):
            continue
        assert rows in {0, 100}


def test_a_folder_that_is_gone_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="writing the spool"):
        SpoolWriter(tmp_path / "gone" / "x.arrow", SCHEMA)
