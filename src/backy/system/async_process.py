"""Programs that an event loop starts and that may outlive us, and signals that it handles.

Not in backy.system.process, because importing asyncio takes longer than most commands run.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence

from backy.system.standard_streams import prepared_input


async def start(
    command: Sequence[str], environment: Mapping[str, str], content: bytes, longest_line: int
) -> asyncio.subprocess.Process:
    """Start a program that may outlive us, with `environment` added to ours.

    It can read `content` from stdin, which is a file without a name. Its stdout and stderr are
    pipes; their readers drop lines longer than `longest_line` bytes.
    Raises OSError if it cannot be started.
    """
    with prepared_input(content) as stdin:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,  # so that Ctrl-C reaches only us; we end it ourselves
            env=os.environ | dict(environment),
            limit=longest_line,
        )


def on_signals(*, reload: Callable[[], object], stop: Callable[[], object]) -> None:
    """Make the running event loop call `reload` on SIGHUP, and `stop` on SIGTERM and Ctrl-C."""
    loop = asyncio.get_running_loop()
    for number, call in ((signal.SIGHUP, reload), (signal.SIGTERM, stop), (signal.SIGINT, stop)):
        loop.add_signal_handler(number, call)
