"""Judges a deployment's quota as Azure does: tokens over a sliding minute, requests over short slices."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from enum import StrEnum

TOKEN_WINDOW_S = 60.0
NEVER_S = 86_400.0  # what Azure asks of a request that is larger than the minute's quota

_CELL_S = 0.01  # charges this close together leave the window together


class Limit(StrEnum):
    """Which quota was exceeded, in the words of Azure's message."""

    CALL = "call"
    TOKEN = "token"  # noqa: S105 - a unit of text


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Admitted when `exceeded` is None. Seconds are quota seconds; limits are a minute's, None where there is none."""

    exceeded: Limit | None
    retry_after_s: float
    requests_limit: int | None
    requests_left: int
    requests_left_in_slice: int
    requests_reset_s: float
    tokens_limit: int | None
    tokens_left: int
    tokens_reset_s: float


class Quota:
    """One deployment's counters.

    A slice of requests is `request_window_s` long, or as many whole seconds as it takes for one request to fit;
    it takes the minute's share, rounded up, and the calendar minute takes no more than its limit.
    A request that is refused for its tokens has been counted as a request.
    """

    def __init__(
        self, *, requests_per_minute: int | None, tokens_per_minute: int | None, request_window_s: float = 1.0
    ) -> None:
        self._window_s = request_window_s
        self._requests_per_minute: int | None = None
        self._calls_in_slice = 0
        self._calls_in_minute = 0
        self._slice = -1
        self._minute = -1
        self._cells: deque[list[float]] = deque()  # [time, tokens], oldest first
        self._tokens = 0
        self.change(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)

    def change(self, *, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        """Judge by these limits from now on.

        Tokens that were charged stay charged; the minute's requests so far count as the same share of the new limit,
        so that the rest of the minute has the new limit's pace.
        """
        before = self._requests_per_minute
        if before is not None and requests_per_minute is not None:
            self._calls_in_minute = math.ceil(self._calls_in_minute * requests_per_minute / before)
        self._requests_per_minute = requests_per_minute
        self._tokens_per_minute = tokens_per_minute
        if requests_per_minute is not None:
            self._slice_s = max(self._window_s, float(math.ceil(60 / requests_per_minute)))
            self._slice_limit = math.ceil(requests_per_minute * self._slice_s / 60)

    def judge(self, now_s: float, tokens: int) -> Verdict:
        """Charge a request of so many tokens at a time that never goes back, or refuse it and say until when."""
        call_wait_s, calls_left, call_reset_s = self._count_call(now_s)
        token_wait_s = self._token_wait(now_s, tokens)
        exceeded = None
        if call_wait_s or token_wait_s:
            exceeded = Limit.CALL if call_wait_s > token_wait_s else Limit.TOKEN
        if exceeded is None:
            self._calls_in_minute += 1
            self._charge(now_s, tokens)
        limit = self._tokens_per_minute
        return Verdict(
            exceeded=exceeded,
            retry_after_s=max(call_wait_s, token_wait_s),
            requests_limit=self._requests_per_minute,
            requests_left=max(0, calls_left - (exceeded is None)),
            requests_left_in_slice=self._left_in_slice(),
            requests_reset_s=call_reset_s,
            tokens_limit=limit,
            tokens_left=max(0, limit - self._tokens) if limit is not None else 0,
            tokens_reset_s=max(0.0, self._cells[0][0] + TOKEN_WINDOW_S - now_s) if self._cells else 0.0,
        )

    def give_back(self, verdict: Verdict, tokens: int) -> Verdict:
        """Take back the tokens of the request that was admitted last; it stays counted as a request."""
        if self._tokens_per_minute is None or not tokens:
            return verdict
        self._tokens -= tokens
        self._cells[-1][1] -= tokens
        return replace(verdict, tokens_left=verdict.tokens_left + tokens)

    def _left_in_slice(self) -> int:
        return 0 if self._requests_per_minute is None else max(0, self._slice_limit - self._calls_in_slice)

    def _count_call(self, now_s: float) -> tuple[float, int, float]:
        limit = self._requests_per_minute
        if limit is None:
            return 0.0, 0, 0.0
        slice_number, minute = int(now_s // self._slice_s), int(now_s // 60)
        if slice_number != self._slice:
            self._slice, self._calls_in_slice = slice_number, 0
        if minute != self._minute:
            self._minute, self._calls_in_minute = minute, 0
        slice_end_s = (slice_number + 1) * self._slice_s - now_s
        left = limit - self._calls_in_minute
        if left <= 0:
            return (minute + 1) * 60 - now_s, 0, slice_end_s
        if self._calls_in_slice >= self._slice_limit:
            return slice_end_s, left, slice_end_s
        self._calls_in_slice += 1
        return 0.0, left, slice_end_s

    def _token_wait(self, now_s: float, tokens: int) -> float:
        limit = self._tokens_per_minute
        if limit is None:
            return 0.0
        cells = self._cells
        while cells and cells[0][0] + TOKEN_WINDOW_S <= now_s:
            self._tokens -= int(cells.popleft()[1])
        if tokens > limit:
            return NEVER_S
        surplus = self._tokens + tokens - limit
        for time_s, charged in cells:
            if surplus <= 0:
                break
            surplus -= int(charged)
            wait_s = time_s + TOKEN_WINDOW_S - now_s
            if surplus <= 0:
                return wait_s
        return 0.0

    def _charge(self, now_s: float, tokens: int) -> None:
        if self._tokens_per_minute is None or not tokens:
            return
        self._tokens += tokens
        if self._cells and now_s - self._cells[-1][0] < _CELL_S:
            self._cells[-1][1] += tokens
        else:
            self._cells.append([now_s, tokens])
