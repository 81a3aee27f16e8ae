"""Run a command and report how it ended."""

import os
from collections.abc import Sequence
from itertools import pairwise

import typer

from backy.cli.app import program
from backy.cli.commands import COMMANDS
from backy.errors import BackyError, CancelledError, OutputError, UsageError, visible
from backy.system import signals, standard_streams

_UNKNOWN = 3  # exit code UNKNOWN of Nagios plug-ins


def run(arguments: Sequence[str]) -> int:
    """Run the command in `arguments` and return its exit code."""
    pairs = pairwise(("", *arguments))  # a folder may be called like a command
    words = (word for before, word in pairs if before not in {"--base-dir", "--config"})
    is_check = next(filter(COMMANDS.__contains__, words), "") == "check"
    as_json = "--json" in arguments
    with signals.ends_in_time(lambda: _say_last(as_json=as_json)):
        try:
            with signals.cancellable():
                code = _call(arguments)
                if code == 0 or is_check:  # another code says more than lost output
                    _require_output()
                return code
        except Exception as error:  # noqa: BLE001 - a script needs an exit code for a bug, too
            from backy.cli.output import report  # only errors need it

            return _report_unknown(error) if is_check else report(error, as_json=as_json)


def _call(arguments: Sequence[str]) -> int:
    """Call the command and return its exit code. Raises UsageError and what the command raises."""
    code, top = 0, program()
    if "_BACKY_COMPLETE" in os.environ:
        top.main(list(arguments), prog_name="backy")  # Tab was hit; this exits
    try:
        with top.make_context("backy", list(arguments)) as context:
            top.invoke(context)
    except typer.Exit as end:
        code = end.exit_code
    except typer.TyperException as error:
        raise _usage_error(error) from error
    return code


def _require_output() -> None:
    """Raise OutputError if something that was printed did not arrive."""
    if problem := standard_streams.trouble():
        hint = "Apart from that, the command has done its work."
        raise OutputError(f"not all output could be written: {problem}", hint)


def _usage_error(error: typer.TyperException) -> UsageError:
    """Typer's error as an error of ours, with a hint to the help of the command."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "backy"
    message = error.format_message().rstrip(".")
    hint = getattr(error, "hint", "") or f"{command} --help shows how to use it."
    return UsageError(message[:1].lower() + message[1:], hint)


def _say_last(*, as_json: bool) -> None:
    """Print why the command is ended that could not end by itself after a signal."""
    from backy.cli.output import report_text

    why = "a signal told it to stop, but it could not: something that it called does not answer"
    hint = "It was ended as by kill -9. Run it again: that clears away what is left."
    standard_streams.say_last(report_text(CancelledError(why, hint), as_json=as_json))


def _report_unknown(error: Exception) -> int:
    """Report an error in the format of Nagios plug-ins."""
    from backy.cli.output import print_lines, report, warn

    if isinstance(error, BackyError):
        text = f"{error.message}. {error.hint}"
    else:
        text = f"a bug: {error!r}"
        report(error, as_json=False)
    line = f"BACKY UNKNOWN - {' '.join(visible(text).replace('|', '/').split())}"[:200]
    if isinstance(error, OutputError):
        warn(line)  # standard output has failed
    print_lines([line])
    return _UNKNOWN
