"""The command's entry: `pipeline`, and `python -m pipeline`. Everything else is imported once Ctrl-C is quiet."""

from __future__ import annotations

import os
import signal

_INTERRUPTED = 130


def main() -> None:
    """Call the command and end with its exit code; Ctrl-C while it is still imported ends with 130 and one word."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # what the caller had us ignore stays ignored
        signal.signal(signal.SIGINT, _leave)
    from pipeline.cli import main as command  # noqa: PLC0415 - half a second in which Ctrl-C would print a traceback

    try:
        signal.signal(signal.SIGINT, before)
        command(prog_name="pipeline")
    except KeyboardInterrupt:
        _leave()


def _leave(*_: object) -> None:
    try:
        os.write(2, b"interrupted\n")
    except OSError:
        pass
    finally:
        os._exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
