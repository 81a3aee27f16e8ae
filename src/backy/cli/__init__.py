"""The command line: one function for each command; `execute` turns errors into exit codes."""

import sys

from backy import __version__
from backy.system import standard_streams


def main() -> int:
    """Run the command in sys.argv and return its exit code (see backy.errors)."""
    standard_streams.protect()
    if sys.argv[1:] in (["--version"], ["-V"], ["version"]):
        # Scripts ask often, so avoid importing typer: it takes longer than everything else.
        sys.stdout.write(f"backy {__version__}\n")
        if not standard_streams.trouble():
            return 0
    from backy.cli.execute import run

    return run(sys.argv[1:])
