"""The program as a group of commands, with what typer does not do as we need it.

A command is imported when it is called. Help names arguments as people write them: JOB, not {JOB}
or JOB <str>. --base-dir and --config are taken before the command and after it.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer.main
from typer.core import TyperCommand, TyperGroup

from backy import __version__
from backy.cli.commands import COMMANDS, GROUPS
from backy.system.standard_streams import take_input

if TYPE_CHECKING:
    from backy.operations.site import Site

Function = TypeVar("Function", bound=Callable[..., Any])
_TYPE = re.compile(r" <\S+>$")
_GLOBAL = {"base_dir", "config"}
_KEY = __name__  # of context.meta: what was typed of these so far, by the name of the option


class Command(TyperCommand):
    """A command of typer, with its usage and its arguments in the usual form."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:  # noqa: ANN401 - typer's
        """The words after the name of the command in the line "Usage:"."""
        return [re.sub("[{}]", "", piece) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's
        """Write the arguments and the options."""
        for heading, kind in (("Arguments", "argument"), ("Options", "option")):
            if rows := list(records(self, ctx, kind)):
                with formatter.section(heading):
                    formatter.write_dl(rows)


def records(command: Any, context: Any, kind: str) -> Iterator[tuple[str, str]]:  # noqa: ANN401 - typer's
    """How each "argument" or "option" of a command is written, and what --help says of it."""
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if parameter.param_type_name == kind and record:
            yield _TYPE.sub("", record[0]), record[1]


class Application(typer.Typer):
    """Registers commands of the class above."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:  # noqa: ANN401 - typer's
        """Register the function that it decorates."""
        return super().command(name, **{"cls": Command} | settings)


class CommandGroup(TyperGroup):
    """A group of commands. Without a command it prints its help on standard error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's
        """Parse the options of the group, and return the other arguments."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(2)
        return super().parse_args(ctx, args)


class _StandIn(TyperCommand):
    """Stands for a command that is not imported yet."""


class Program(CommandGroup):
    """All commands. Those that are not imported yet have only a name and a summary."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - typer's
        super().__init__(**attributes)
        for command in self.commands.values():
            repeat(self.params, command)
        stand_ins = {name: _StandIn(name, help=entry.help) for name, entry in COMMANDS.items()}
        self.commands = stand_ins | dict(self.commands)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's
        """Parse the options of the program, and return the other arguments."""
        # All options but --help make typer import pydantic.
        return super().parse_args(ctx, ["--help"] if args == ["help"] else args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - typer's
        """The command that `args` begin with."""
        if not ctx.resilient_parsing:  # which Tab does
            args = _without_words(ctx, args)
        self.load(args[0])
        return super().resolve_command(ctx, args)

    def load(self, name: str) -> None:
        """Import the command `name`, if there is one and it is not imported yet."""
        if isinstance(self.commands.get(name), _StandIn):
            module = import_module(f"backy.cli.{COMMANDS[name].module}")
            # Importing the module has added its commands to `app`.
            self.commands.update(typer.main.get_group(module.app).commands)

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's
        """Write the body of --help: the groups of commands, and the options."""
        width = max(map(len, COMMANDS))
        for heading, commands in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(f"{name:{width}}", entry.help) for name, entry in commands.items()]
                )
        TyperCommand.format_options(self, ctx, formatter)  # type: ignore[arg-type]


def print_version(value: bool) -> None:
    """Print the version and exit, if `value` is true."""
    if value:
        typer.echo(f"backy {__version__}")
        raise typer.Exit


def _without_words(context: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's
    """Handle the words "help" and "version" as if they were options."""
    if args[0] == "version":
        print_version(value=True)
    if args == ["help"]:
        typer.echo(context.get_help())
        raise typer.Exit
    return [*args[1:], "--help"] if args[0] == "help" else args


def open_site(context: Any) -> None:  # noqa: ANN401 - typer's
    """Give the commands their site, for what was typed before the command or is in the environment.

    What the daemon hands to a job's command is taken out of standard input and the environment,
    because the hooks of this job may run commands for other ones.
    """
    sources = {name: context.get_parameter_source(name) for name in _GLOBAL}
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
        if option.name in _GLOBAL:
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
