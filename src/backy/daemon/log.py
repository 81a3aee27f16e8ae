"""The log of the daemon: one line for each event, on standard error, as text or as JSON."""

import sys
from functools import partial

import structlog
from structlog import processors
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from backy.system.standard_streams import is_journal

_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_JSON = processors.JSONRenderer()
_TEXT = processors.KeyValueRenderer(key_order=["event"], drop_missing=True)


def open_log(*, as_json: bool) -> FilteringBoundLogger:
    """A logger that writes lines such as `event='finished' job='vm1' verb='backup'`.

    The journal takes the level from a prefix, and adds the time itself; elsewhere a line has both,
    as JSON always has. Standard error ignores what a full disk or a lost reader says to a line: see
    `standard_streams.protect`.
    """
    in_journal = is_journal()
    render = _JSON if as_json else _TEXT
    return structlog.wrap_logger(  # type: ignore[no-any-return]
        structlog.WriteLogger(sys.stderr),
        processors=[
            processors.add_log_level,
            *([] if in_journal and not as_json else [processors.TimeStamper(fmt="iso", utc=True)]),
            processors.format_exc_info,
            partial(_journal_line, render) if in_journal else render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )


def _journal_line(render: Processor, logger: WrappedLogger, method: str, event: EventDict) -> str:
    """A line after the prefix from which the journal takes the level: sd-daemon(3)."""
    priority = _PRIORITIES[event["level"] if render is _JSON else event.pop("level")]
    return f"<{priority}>{render(logger, method, event)!s}"
