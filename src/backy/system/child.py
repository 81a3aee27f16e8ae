"""Programs that run beside an event loop, and outlive us if they have to.

Apart from backy.system.process, because asyncio takes longer to import than most commands to run.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from backy.system.process import set_io_class


@dataclass(frozen=True, slots=True)
class Priority:
    """How much a child gives way: nice(1), 0 to 19, and "none", "best-effort" or "idle"."""

    nice: int = 0
    io_class: str = "none"


async def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    priority: Priority,
    *,
    longest_line: int,
) -> asyncio.subprocess.Process:
    """Start a program that outlives us if it has to, with `environment` added to ours.

    Its stdout and stderr are pipes, whose readers drop lines longer than `longest_line` bytes.
    Raises OSError where it cannot be started.
    """
    child = await asyncio.create_subprocess_exec(
        *command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,  # Ctrl-C at our terminal is for us, and we ask it to end
        env=os.environ | dict(environment),
        limit=longest_line,
    )
    with suppress(OSError):  # it may have ended already
        os.setpriority(os.PRIO_PROCESS, child.pid, priority.nice)
        if priority.io_class != "none":
            set_io_class(child.pid, priority.io_class)
    return child
