"""The command line: one function a command, and one place that turns errors into exit codes."""

from __future__ import annotations

import sys

from backy import __version__


def main() -> int:
    """Run the command in sys.argv and give its exit code (the table is in backy.errors)."""
    if sys.argv[1:] == ["--version"]:  # monitoring asks often, and typer takes 100 ms to import
        sys.stdout.write(f"backy {__version__}\n")
        return 0
    from backy.cli.execute import run

    return run(sys.argv[1:])
