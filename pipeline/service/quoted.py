"""Cuts secrets out of what services say: some quote the key that they refuse, as it is or encoded."""

from __future__ import annotations

import base64
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote, quote_plus

from pipeline.model import Reply
from pipeline.service.headers import ReplyIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Hider:
    """Finds secrets written plainly, as JSON, in a URL or in base64, and puts `mark` in their place."""

    mark: str
    _text: re.Pattern[str] | None
    _body: re.Pattern[bytes] | None

    def text(self, text: str) -> str:
        """The text without secrets."""
        return text if self._text is None else self._text.sub(self.mark, text)

    def reply(self, reply: Reply) -> Reply:
        """The reply with a body that quotes no secret."""
        if self._body is None or self._body.search(reply.body) is None:
            return reply
        return replace(reply, body=self._body.sub(self.mark.encode(), reply.body))

    def ids(self, ids: ReplyIds) -> ReplyIds:
        """The ids, without those that hold a secret."""
        if self._text is None or not self._text.search(f"{ids.request_id}\n{ids.apim_request_id}\n{ids.region}"):
            return ids
        kept = [
            None if value is None or self._text.search(value) else value
            for value in (ids.request_id, ids.apim_request_id, ids.region)
        ]
        return ReplyIds(request_id=kept[0], apim_request_id=kept[1], region=kept[2])


@functools.lru_cache(maxsize=64)
def hider(secrets: tuple[str, ...], mark: str = "***") -> Hider:
    """Return what finds these secrets; empty ones are passed over."""
    # Longest first, so that a secret within another leaves nothing of it behind.
    forms = sorted({form for secret in secrets for form in _forms(secret)}, key=len, reverse=True)
    if not forms:
        return Hider(mark=mark, _text=None, _body=None)
    pattern = "|".join(map(re.escape, forms))
    return Hider(mark=mark, _text=re.compile(pattern), _body=re.compile(pattern.encode()))


def _forms(secret: str) -> Iterator[str]:
    text = secret.strip()
    if not text:
        return
    yield text
    yield json.dumps(text)[1:-1]
    yield quote(text, safe="")
    yield quote(text)
    yield quote_plus(text)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        yield encode(text.encode()).decode().rstrip("=")
