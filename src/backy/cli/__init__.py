"""The command line: one function a command, and one place that turns errors into exit codes."""

from __future__ import annotations

import sys

from backy import __version__
from backy.system import standard_streams


def main() -> int:
    """Run the command in sys.argv and give its exit code (the table is in backy.errors)."""
    standard_streams.protect()
    if sys.argv[1:] in (["--version"], ["-V"], ["version"]):
        # Without typer, which takes longer to import than all else: scripts ask often.
        sys.stdout.write(f"backy {__version__}\n")
        if not standard_streams.trouble():
            return 0
    from backy.cli.execute import run

    return run(sys.argv[1:])
