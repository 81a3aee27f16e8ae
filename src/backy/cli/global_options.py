"""--base-dir and --config: taken before the command and after it, and where that leads to."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from backy.system.standard_streams import take_input

if TYPE_CHECKING:
    from backy.operations.site import Site

_NAMES = {"base_dir", "config"}
_KEY = __name__  # of context.meta: what was typed so far, by the name of the option


def open_site(context: Any) -> None:  # noqa: ANN401 - typer's
    """Give the commands their site, for what was typed before the command or is in the environment.

    What the daemon hands to a job's command is taken out of standard input and the environment,
    because the hooks of this job may run commands for other ones.
    """
    sources = {name: context.get_parameter_source(name) for name in _NAMES}
    context.meta[_KEY] = {
        name: context.params[name]
        for name, source in sources.items()
        if source and source.name == "COMMANDLINE"
    }
    handed = os.environ.pop("BACKY_SETTINGS", "")
    context.obj = _site(context.params, take_input().decode() if handed == "stdin" else handed)


def repeat(options: Iterable[Any], command: Any) -> None:  # noqa: ANN401 - typer's
    """Have `command`, and all commands within it, take these `options` of the program as well."""
    for option in options:
        if option.name in _NAMES:
            again = copy.copy(option)
            again.envvar, again.expose_value, again.callback = None, False, _take_again
            command.params.append(again)
    for inner in getattr(command, "commands", {}).values():
        repeat(options, inner)


def _take_again(context: Any, option: Any, value: Path | None) -> None:  # noqa: ANN401 - typer's
    """Use an option that stands after the command. Raises BadParameter for another value."""
    if value is None or context.resilient_parsing:
        return
    typed, root = context.meta[_KEY], context.find_root()
    if typed.setdefault(option.name, value) != value:
        why = f"{value} is not {typed[option.name]}, which was given before"
        raise typer.BadParameter(why, ctx=context, param=option)
    root.params[option.name] = value
    context.obj = _site(root.params, context.obj.handed)


def _site(options: Mapping[str, Any], handed: str) -> Site:
    # Imported here, because help needs no site.
    from backy.operations.site import Site

    return Site.of(options["base_dir"], options["config"], handed)
