"""One place that says "no further": workers ask it between steps, and waits are woken by it."""

from __future__ import annotations

import signal
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import TracebackType
from typing import Self

import anyio

from pipeline.errors import PipelineError, StoppedEarlyError


class Interrupted(PipelineError):  # noqa: N818 - a person's wish, not an error
    """SIGINT, SIGTERM or SIGHUP asked the run to end."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}")


class Drained(StoppedEarlyError):  # noqa: N818 - a person's wish, not an error
    """A person asked the run to end once its calls have; none of them is cut short."""


class Stopped(Exception):  # noqa: N818 - a message to the worker, not an error
    """The run stops; the row in hand stays pending."""


class Stop:
    """Asked for at most once with effect: the first cause is the one that the run ends with.

    `presses` once calls in flight have only their grace left; while a run is drained, they have all their time.
    """

    def __init__(self) -> None:
        self.cause: BaseException | None = None
        self.requested = anyio.Event()
        self.presses = anyio.Event()
        self._waits: set[anyio.CancelScope] = set()
        self._sends: set[anyio.CancelScope] = set()
        self._stretches: set[_Stretch] = set()

    def request(self, cause: BaseException) -> None:
        """Let nothing new begin and wake every wait. Calls in flight go on; `abandon` ends those."""
        if self.cause is None:
            self.cause = cause
        self.requested.set()
        if not isinstance(cause, Drained):
            self.presses.set()
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
        for stretch in self._stretches:
            if stretch.calls:
                stretch.scope.cancel()

    def waiting(self) -> AbstractContextManager[None, None]:
        """Wrap a wait in it; raises Stopped instead of waiting on."""
        return _Within(self, self._waits)

    def sending(self) -> AbstractContextManager[None, None]:
        """Wrap a call in it; raises Stopped when the call is abandoned."""
        return _Within(self, self._sends)

    def stretch(self) -> AbstractContextManager[_Stretch, bool | None]:
        """Wrap a worker's whole work in it; its calls are made in `sending_on` of it, one at a time.

        Who is in no call when calls are abandoned goes on: what was answered before is kept in peace.
        """
        return _Stretch(self, self._stretches)


class _Within:
    """A scope that is cancelled with the others of its set; a class, because a generator costs as much again."""

    __slots__ = ("_scope", "_scopes", "_stop")

    def __init__(self, stop: Stop, scopes: set[anyio.CancelScope]) -> None:
        self._stop = stop
        self._scopes = scopes

    def __enter__(self) -> None:
        """Begin. Raises Stopped where the run stops already."""
        if self._stop.cause is not None:
            raise Stopped
        self._scope = anyio.CancelScope()
        self._scope.__enter__()
        self._scopes.add(self._scope)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End. Raises Stopped where it was cancelled."""
        scope = self._scope
        self._scopes.discard(scope)
        scope.__exit__(kind, error, traceback)
        if scope.cancelled_caught:
            raise Stopped


class _Stretch:
    """A scope around everything that a worker does: one for each call would cost a tenth of all that a row takes.

    `calls` while it is in a call.
    """

    __slots__ = ("_stop", "_stretches", "calls", "scope")

    def __init__(self, stop: Stop, stretches: set[_Stretch]) -> None:
        self.scope = anyio.CancelScope()
        self.calls = False
        self._stop = stop
        self._stretches = stretches

    def __enter__(self) -> Self:
        """Begin."""
        self._stretches.add(self)
        self.scope.__enter__()
        _STRETCH.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """End; being abandoned is no error."""
        self._stretches.discard(self)
        return self.scope.__exit__(kind, error, traceback)


class sending_on:  # noqa: N801 - used as a function would be
    """Wrap a call of this task's stretch in it; raises Stopped when it is abandoned, or where the run stops already."""

    __slots__ = ("_stretch",)

    def __enter__(self) -> None:
        """Begin."""
        stretch = self._stretch = _STRETCH.get()
        if stretch._stop.cause is not None:  # noqa: SLF001 - one of ours
            raise Stopped
        stretch.calls = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End."""
        stretch = self._stretch
        stretch.calls = False
        if stretch.scope.cancel_called and kind is not None and issubclass(kind, anyio.get_cancelled_exc_class()):
            raise Stopped


_STRETCH: ContextVar[_Stretch] = ContextVar("stretch")
