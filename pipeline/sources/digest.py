"""A digest of a range's content that does not depend on how its rows were cut into batches."""

from __future__ import annotations

import hashlib
import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

_HASH = "sha256"


class RangeDigest:
    """The content of consecutive rows, hashed as it is read.

    Lines go in as they are; columns go in by role (which cells are null, lengths, bytes), each role with a hash
    of its own, so that any cutting of the same rows into batches gives the same digest. What a null cell hides,
    unused bytes, the order of columns and dictionary encoding do not count. Names, types and nesting do.
    """

    __slots__ = ("_columns", "_lines", "_raw")

    def __init__(self) -> None:
        self._raw = hashlib.new(_HASH)
        self._lines = False
        self._columns: dict[str, _ColumnDigest] = {}

    def raw(self, content: bytes) -> None:
        """Add bytes to the range; only their concatenation counts."""
        if content:
            self._lines = True
            self._raw.update(content)

    def columns(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch. Every batch of a range must have the same columns and types."""
        if batch.num_rows == 0:
            return
        for field, array in zip(batch.schema, batch.columns, strict=True):
            column = self._columns.get(field.name)
            if column is None:
                column = self._columns[field.name] = _ColumnDigest(plain_type(field.type))
            column.update(plain_array(array))

    def hexdigest(self) -> str:
        """64 hexadecimal digits; may be asked at any time, and more rows may follow."""
        whole = hashlib.new(_HASH)
        if self._lines:
            whole.update(b"lines")
            whole.update(self._raw.digest())
        for name in sorted(self._columns):
            encoded = name.encode()
            whole.update(struct.pack("<q", len(encoded)))
            whole.update(encoded)
            self._columns[name].finish(whole)
        return whole.hexdigest()


class _ColumnDigest:
    """One column, or one level of a nested one: null positions, lengths and data, then the levels below."""

    __slots__ = ("_children", "_data", "_lengths", "_nulls", "_rows", "_type")

    def __init__(self, type_: pa.DataType) -> None:
        self._type = type_
        self._rows = 0
        self._nulls = hashlib.new(_HASH)
        self._lengths = hashlib.new(_HASH)
        self._data = hashlib.new(_HASH)
        self._children = tuple(_ColumnDigest(child) for child in _child_types(type_))

    def update(self, array: Any) -> None:
        import pyarrow as pa  # noqa: PLC0415 - an import of a tenth of a second, for whoever reads rows
        import pyarrow.compute as pc  # noqa: PLC0415 - likewise

        rows = len(array)
        if array.null_count:
            positions = pc.add(pc.indices_nonzero(array.is_null()).cast(pa.int64()), self._rows)
            self._nulls.update(_buffer(positions, width=8))
            array = array.drop_null()
        self._rows += rows
        type_ = self._type
        types = pa.types
        if types.is_null(type_) or len(array) == 0:
            return
        if types.is_boolean(type_):
            self._data.update(_buffer(array.cast(pa.uint8()), width=1))
        elif _is_text(type_):
            lengths = pc.binary_length(array).cast(pa.int64())
            self._lengths.update(_buffer(lengths, width=8))
            self._data.update(_text(array))
        elif types.is_fixed_size_list(type_):
            self._children[0].update(array.flatten())
        elif types.is_list(type_) or types.is_large_list(type_):
            self._lengths.update(_buffer(pc.list_value_length(array).cast(pa.int64()), width=8))
            self._children[0].update(array.flatten())
        elif types.is_map(type_):
            entries = pa.ListArray.from_arrays(
                array.offsets, pa.StructArray.from_arrays([array.keys, array.items], names=["key", "value"])
            )
            self._lengths.update(_buffer(pc.list_value_length(entries).cast(pa.int64()), width=8))
            self._children[0].update(entries.flatten())
        elif types.is_struct(type_):
            for child, values in zip(self._children, array.flatten(), strict=True):
                child.update(values)
        else:
            self._data.update(_buffer(array, width=type_.bit_width // 8))

    def finish(self, whole: Any) -> None:
        """Add this level and those below it to a hash."""
        head = str(self._type).encode()
        whole.update(struct.pack("<qqq", self._rows, len(head), len(self._children)))
        whole.update(head)
        for role in (self._nulls, self._lengths, self._data):
            whole.update(role.digest())
        for child in self._children:
            child.finish(whole)


def plain_type(type_: Any) -> Any:  # noqa: PLR0911 - one line a kind of type
    """Give the type of the same values without dictionary, run-end, view or extension encoding, at any depth."""
    import pyarrow as pa  # noqa: PLC0415 - an import of a tenth of a second, for whoever reads rows

    types = pa.types
    if isinstance(type_, pa.BaseExtensionType):
        return plain_type(type_.storage_type)
    if types.is_dictionary(type_) or types.is_run_end_encoded(type_):
        return plain_type(type_.value_type)
    if types.is_string_view(type_):
        return pa.string()
    if types.is_binary_view(type_):
        return pa.binary()
    if types.is_list(type_) or types.is_list_view(type_):
        return pa.list_(_plain_field(type_.value_field))
    if types.is_large_list(type_) or types.is_large_list_view(type_):
        return pa.large_list(_plain_field(type_.value_field))
    if types.is_fixed_size_list(type_):
        return pa.list_(_plain_field(type_.value_field), type_.list_size)
    if types.is_map(type_):
        return pa.map_(_plain_field(type_.key_field), _plain_field(type_.item_field))
    if types.is_struct(type_):
        return pa.struct([_plain_field(field) for field in type_])
    return type_


def plain_array(array: pa.Array[Any]) -> pa.Array[Any]:
    """Give the same values in the plain type."""
    plain = plain_type(array.type)
    return array if array.type == plain else array.cast(plain)


def _plain_field(field: Any) -> Any:
    return field.remove_metadata().with_type(plain_type(field.type))


def _child_types(type_: Any) -> list[pa.DataType]:
    import pyarrow as pa  # noqa: PLC0415 - an import of a tenth of a second, for whoever reads rows

    types = pa.types
    if types.is_map(type_):
        return [pa.struct([type_.key_field.with_name("key"), type_.item_field.with_name("value")])]
    if types.is_list(type_) or types.is_large_list(type_) or types.is_fixed_size_list(type_):
        return [type_.value_type]
    if types.is_struct(type_):
        return [field.type for field in type_]
    return []


def _is_text(type_: pa.DataType) -> bool:
    import pyarrow as pa  # noqa: PLC0415 - an import of a tenth of a second, for whoever reads rows

    types = pa.types
    return any(
        is_type(type_) for is_type in (types.is_string, types.is_binary, types.is_large_string, types.is_large_binary)
    )


def _buffer(array: Any, *, width: int) -> memoryview:
    """View the bytes of a fixed-width array without nulls."""
    start = array.offset * width
    return memoryview(array.buffers()[1])[start : start + len(array) * width]


def _text(array: Any) -> memoryview:
    """View the bytes of all strings of an array without nulls, one behind the other."""
    import pyarrow as pa  # noqa: PLC0415 - an import of a tenth of a second, for whoever reads rows

    _, offsets, data = array.buffers()
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    numbers = memoryview(offsets).cast("q" if wide else "i")
    if data is None:
        return memoryview(b"")
    return memoryview(data)[numbers[array.offset] : numbers[array.offset + len(array)]]
