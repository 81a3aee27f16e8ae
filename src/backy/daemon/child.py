"""A backy command as a child process of the daemon."""

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

from backy.config.settings import Global
from backy.model.answers import JobOverview
from backy.model.messages import ProgressEvent
from backy.system.async_process import start
from backy.system.process import prioritize
from backy.units import MiB

_LONGEST_EVENT = 4 * MiB  # a revision.json has 1 MiB at most
CANCEL_SECONDS = 60  # for a command to clean up before it is killed
LONGEST_TEXT = 1000  # characters of a line in the log
_LAST_LINES = 20  # of standard error, for the log of a command that failed
Event = Mapping[str, Any]


class ChildCommand:
    """One command. `error` is the message that it failed with."""

    def __init__(
        self, arguments: Sequence[str], environment: Mapping[str, str], settings: str = ""
    ) -> None:
        """`settings` is what it finds on standard input."""
        # -P: a folder "backy" in the daemon's current folder must not be run instead.
        self._command = [sys.executable, "-P", "-m", "backy", *arguments, "--json"]
        self._environment = environment
        self._settings = settings.encode()
        self._process: asyncio.subprocess.Process | None = None
        self._is_cancelled = False
        self._began = time.monotonic()
        self._progress: ProgressEvent | None = None
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self.error = ""
        self.is_too_slow = False

    async def run(self, common: Global, hear: Callable[[Event], None]) -> int:
        """Start it and wait for its end; the exit code, or minus the signal that ended it.

        `common` says which priority it has.
        `hear` gets each event but those of progress. If `hear` raises, it gets no more events,
        and the error is raised once the command has ended. Raises OSError if it cannot be started.
        """
        self._process = child = await start(
            self._command, self._environment, self._settings, _LONGEST_EVENT
        )
        with suppress(OSError):  # it may have ended already
            prioritize(common.nice, common.io_class, child.pid)
        if self._is_cancelled:
            self.cancel()
        bug, _ = await asyncio.gather(self._read_output(child, hear), self._read_errors(child))
        code: int = await child.wait()
        if bug:
            raise bug
        return code

    async def _read_output(
        self, child: asyncio.subprocess.Process, hear: Callable[[Event], None]
    ) -> Exception | None:
        """Read to the end, come what may: a command that nobody reads from waits for ever."""
        bug: Exception | None = None
        async for line in _lines(child.stdout):
            event = _parse(line)
            if event.get("event") == "progress":
                self._progress = cast(ProgressEvent, event)
            elif event and not bug:
                try:
                    hear(event)
                except Exception as error:  # noqa: BLE001 - raised by `run`
                    bug = error
        return bug

    async def _read_errors(self, child: asyncio.subprocess.Process) -> None:
        async for line in _lines(child.stderr):
            event = _parse(line)
            if event.get("event") == "error":
                self.error = str(event.get("message", ""))[:LONGEST_TEXT]
                self._last_lines.extend(str(event.get("traceback", "")).splitlines())
            else:
                self._last_lines.append(line.decode(errors="replace").rstrip())

    @property
    def seconds(self) -> float:
        """For how long it has been running."""
        return time.monotonic() - self._began

    @property
    def done(self) -> int:
        """How many bytes of the disks it has dealt with, as far as it said."""
        return self._progress["done"] if self._progress else 0

    @property
    def last_lines(self) -> str:
        """The end of what it wrote to standard error: a traceback, if it had a bug."""
        return "\n".join(line[:LONGEST_TEXT] for line in self._last_lines)

    def describe(self, shown: JobOverview) -> None:
        """Add what is known of it only while it runs."""
        shown["pid"] = self._process.pid if self._process else None
        shown["running_seconds"] = self.seconds
        if progress := self._progress:
            shown["done"], shown["total"] = progress["done"], progress["total"]
            shown["rate"], shown["eta_seconds"] = progress["rate"], progress["eta_seconds"]

    def cancel(self) -> None:
        """Have it clean up and end; within moments, unless its storage hangs."""
        self._is_cancelled = True
        if self._process:
            with suppress(ProcessLookupError):
                self._process.terminate()

    async def end(self) -> None:
        """As `cancel`; kill it after a minute. The next backup clears away what its draft left."""
        self.cancel()
        await asyncio.sleep(CANCEL_SECONDS)
        if self._process:
            with suppress(ProcessLookupError):
                self._process.kill()


def _parse(line: bytes) -> Event:
    """The JSON object in a line; empty if there is none."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[bytes]:
    """The lines of a stream. A line that is longer than any event is dropped, piece by piece."""
    while stream:
        try:
            line = await stream.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line
