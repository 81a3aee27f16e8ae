"""The daemon's log: one line an event, on standard error, for the journal or as JSON."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO

import structlog
from structlog import processors
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}  # sd-daemon(3)


def open_log(*, as_json: bool) -> FilteringBoundLogger:
    """A logger for lines such as `event='backup finished' job='vm1'`, the level before them.

    The journal notes the time itself, and the level from its own mark; elsewhere both are shown.
    """
    in_journal = bool(os.environ.get("JOURNAL_STREAM")) and not as_json
    text = processors.KeyValueRenderer(key_order=["event"], drop_missing=True)
    return structlog.wrap_logger(  # type: ignore[no-any-return]
        structlog.WriteLogger(_Ear(sys.stderr)),  # type: ignore[arg-type]
        processors=[
            processors.add_log_level,
            _marked if in_journal else processors.TimeStamper(fmt="iso", utc=True),
            processors.format_exc_info,
            processors.JSONRenderer() if as_json else text,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )


class _Ear:
    """A stream whose reader may be gone, or its disk full: the backups matter more than the log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()


def _marked(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """With the mark that journald takes for the level."""
    level = event.pop("level")
    return {"event": event.pop("event"), "level": level, **event}
