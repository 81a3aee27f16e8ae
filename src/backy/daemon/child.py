"""A backy command as a child process: started, listened to, ended."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from backy.system import process
from backy.units import MiB

_LONGEST_EVENT = 4 * MiB  # a revision.json has 1 MiB at most
_LAST_LINES = 20  # of standard error, for the log of a command that failed
Event = dict[str, Any]


class Child:
    """One command. `progress` is its last event of that kind, `error` what it failed with."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        # -P: a folder "backy" where the daemon was started is not what is to be run.
        self._command = [sys.executable, "-P", "-m", "backy", *arguments, "--json"]
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._is_cancelled = False
        self._began = time.monotonic()
        self.progress: Event = {}
        self.error = ""
        self._said: deque[str] = deque(maxlen=_LAST_LINES)

    async def run(self, priority: process.Priority, hear: Callable[[Event], None]) -> int:
        """Start it, pass on each event but progress, and give its exit code (signals: negative).

        Raises OSError where it cannot be started.
        """
        child = await process.start(
            self._command, self._environment, priority, longest_line=_LONGEST_EVENT
        )
        self._process = child
        if self._is_cancelled:
            self.cancel()
        await asyncio.gather(self._listen(child, hear), self._overhear(child))
        code: int = await child.wait()
        return code

    async def _listen(
        self, child: asyncio.subprocess.Process, hear: Callable[[Event], None]
    ) -> None:
        async for line in _lines(child.stdout):
            with suppress(ValueError):
                event = json.loads(line)
                if not isinstance(event, dict):
                    continue
                if event.get("event") == "progress":
                    self.progress = event
                    continue
                hear(event)

    async def _overhear(self, child: asyncio.subprocess.Process) -> None:
        async for line in _lines(child.stderr):
            event: object = None
            with suppress(ValueError):
                event = json.loads(line)
            if isinstance(event, dict) and event.get("event") == "error":
                self.error = str(event.get("message", ""))
                self._said.extend(str(event.get("traceback", "")).splitlines())
            else:
                self._said.append(line.decode(errors="replace").rstrip())

    @property
    def last_words(self) -> str:
        """The end of what it wrote to standard error: a traceback, if it had a bug."""
        return "\n".join(self._said)

    def said(self) -> Event:
        """What it is doing, for those who ask."""
        pid = self._process.pid if self._process else None
        names = ("done", "total", "rate", "eta_seconds")
        progress = {name: self.progress[name] for name in names if name in self.progress}
        return {"pid": pid, "running_seconds": time.monotonic() - self._began} | progress

    def cancel(self) -> None:
        """Have it clean up and end; within moments, unless its storage hangs."""
        self._is_cancelled = True
        if self._process:
            with suppress(ProcessLookupError):
                self._process.terminate()

    def kill(self) -> None:
        """End it at once. What it left of a draft, the next backup clears away."""
        if self._process:
            with suppress(ProcessLookupError):
                self._process.kill()


async def _lines(stream: asyncio.StreamReader | None) -> AsyncIterator[bytes]:
    """The lines of a stream; one that is longer than any event is dropped, piece by piece."""
    while stream:
        try:
            line = await stream.readline()
        except ValueError:
            continue
        if not line:
            return
        yield line
