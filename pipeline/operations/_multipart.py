"""multipart/form-data (RFC 7578), as the OpenAI SDKs write it: the same parts always give the same bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import RowError

_MOST_NAME = 100
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")
_ESCAPES = {'"': "%22", "\r": "%0D", "\n": "%0A"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePart:
    """The file of a form."""

    name: str
    filename: str
    content_type: str
    content: bytes = field(repr=False)


def form_fields(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Spell a value of JSON as fields of a form.

    A list's items are fields `name[]`, an object's `name[key]`; null is left out, as are empty lists and objects.
    Raises RowError, code `type`, for what UTF-8 cannot say.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from form_fields(f"{name}[{key}]", inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from form_fields(f"{name}[]", inner)
    elif value is not None:
        text = _text(value)
        try:
            (name + text).encode()
        except UnicodeEncodeError:
            raise RowError(code="type", message="a field of the request holds half a surrogate pair") from None
        yield name, text


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def encode(fields: Sequence[tuple[str, str]], file: FilePart) -> tuple[bytes, str]:
    """Write a form's body, the file last, and its content type.

    The boundary is a digest of all that it stands between, so that no part can hold it.
    """
    heads = [
        f'Content-Disposition: form-data; name="{_quoted(name)}"\r\n\r\n{value}'.encode() for name, value in fields
    ]
    head = (
        f'Content-Disposition: form-data; name="{_quoted(file.name)}"; filename="{_quoted(file.filename)}"\r\n'
        f"Content-Type: {file.content_type}\r\n\r\n"
    ).encode()
    digest = hashlib.blake2b(digest_size=20)
    for part in (*heads, head, file.content):
        digest.update(part)
    boundary = digest.hexdigest().encode()
    pieces = [piece for part in heads for piece in (b"--", boundary, b"\r\n", part, b"\r\n")]
    pieces += [b"--", boundary, b"\r\n", head, file.content, b"\r\n--", boundary, b"--\r\n"]
    return b"".join(pieces), f"multipart/form-data; boundary={boundary.decode()}"


def _quoted(name: str) -> str:
    """Escape what would end a quoted name, as browsers do."""
    return "".join(_ESCAPES.get(character, character) for character in name)


def safe_filename(name: str, extension: str) -> str:
    """A plain ASCII name with the extension that fits the content: services go by it."""
    stem = name.replace("\\", "/").rpartition("/")[2]
    stem = stem.rpartition(".")[0] or stem
    stem = _UNSAFE.sub("_", stem).strip("._")[:_MOST_NAME]
    return f"{stem or 'file'}.{extension}"
