"""Run a command and report how it ended."""

from __future__ import annotations

import traceback

from backy import errors
from backy.cli.app import program
from backy.cli.output import print_json, warn
from backy.errors import BackyError
from backy.system import signals

_BUG = 70  # EX_SOFTWARE, sysexits.h


def run(arguments: list[str]) -> int:
    """Give the exit code of the command that `arguments` say."""
    try:
        with signals.cancellable():
            program()(arguments, prog_name="backy")
    except SystemExit as end:  # typer's: 0 for done, 2 for wrong usage, which it has explained
        return end.code if isinstance(end.code, int) else 1
    except BackyError as error:
        _report(error, as_json="--json" in arguments)
        return error.exit_code
    except Exception:  # noqa: BLE001 - a bug: whoever mends it needs the traceback, a script the code
        traceback.print_exc()
        return _BUG
    return 0


def _report(error: BackyError, *, as_json: bool) -> None:
    """Say what failed, on which object, and what to do next."""
    warn(f"backy: {error.message}")
    if error.hint:
        warn(f"  {error.hint}")
    if as_json:
        kinds = (kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
        record = {"event": "error", "error": next(kinds).__name__, "exit_code": error.exit_code}
        print_json(record | {"message": error.message, "hint": error.hint})
