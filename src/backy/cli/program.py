"""The program as a group of commands. A command is imported when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer.main
from typer.core import TyperCommand, TyperGroup

from backy import __version__
from backy.cli import global_options
from backy.cli.commands import COMMANDS, GROUPS


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
            global_options.repeat(self.params, command)
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
