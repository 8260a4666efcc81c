"""One place that says "no further": workers ask it between steps, and waits are woken by it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from pipeline.errors import PipelineError


class Interrupted(PipelineError):  # noqa: N818 - a person's wish, not an error
    """SIGINT, SIGTERM or SIGHUP asked the run to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}")


class Stopped(Exception):  # noqa: N818 - a message to the worker, not an error
    """The run stops; the row in hand stays pending."""


class Stop:
    """Asked for at most once with effect: the first cause is the one that the run ends with."""

    def __init__(self) -> None:
        self.cause: BaseException | None = None
        self.requested = anyio.Event()
        self._waits: set[anyio.CancelScope] = set()
        self._sends: set[anyio.CancelScope] = set()

    def request(self, cause: BaseException) -> None:
        """Let nothing new begin and wake every wait. Calls in flight go on; `abandon` ends those."""
        if self.cause is None:
            self.cause = cause
        self.requested.set()
        for scope in self._waits:
            scope.cancel()

    def request_from_afar(self, cause: BaseException) -> None:
        """Note the cause from another thread, whose process is about to end; nobody is woken."""
        if self.cause is None:
            self.cause = cause

    def abandon(self) -> None:
        """Cancel the calls in flight; their rows stay pending."""
        for scope in self._sends:
            scope.cancel()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wrap a wait in it; raises Stopped instead of waiting on."""
        with self._within(self._waits):
            yield

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Wrap a call in it; raises Stopped when the call is abandoned."""
        with self._within(self._sends):
            yield

    @contextmanager
    def _within(self, scopes: set[anyio.CancelScope]) -> Iterator[None]:
        if self.cause is not None:
            raise Stopped
        with anyio.CancelScope() as scope:
            scopes.add(scope)
            try:
                yield
            finally:
                scopes.discard(scope)
        if scope.cancelled_caught:
            raise Stopped
