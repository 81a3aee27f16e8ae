"""The log of the daemon: one line for each event, on standard error, as text or as JSON."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

import structlog
from structlog import processors
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_TEXT = processors.KeyValueRenderer(key_order=["event"], drop_missing=True)


def open_log(*, as_json: bool) -> FilteringBoundLogger:
    """A logger that writes lines such as `event='finished' job='vm1' verb='backup'`.

    The journal adds the time itself, and takes the level from a prefix; elsewhere a line has both.
    """
    in_journal = bool(os.environ.get("JOURNAL_STREAM")) and not as_json
    return structlog.wrap_logger(  # type: ignore[no-any-return]
        structlog.WriteLogger(_Tolerant(sys.stderr)),  # type: ignore[arg-type]
        processors=[
            processors.add_log_level,
            *([] if in_journal else [processors.TimeStamper(fmt="iso", utc=True)]),
            processors.format_exc_info,
            processors.JSONRenderer() if as_json else _journal_line if in_journal else _TEXT,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )


class _Tolerant:
    """A stream that ignores write errors: a full disk or a lost reader must not stop backups."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _journal_line(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """A line of text after the prefix from which the journal takes the level: sd-daemon(3)."""
    priority = _PRIORITIES[event.pop("level")]
    return f"<{priority}>{_TEXT(logger, method, event)}"
