"""The program as a group of commands, each of which is imported when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer.main
from typer.core import TyperCommand, TyperGroup

from backy import __version__
from backy.cli import global_options
from backy.cli.commands import COMMANDS, GROUPS


class CommandGroup(TyperGroup):
    """Commands within a command. Called without one, it explains itself on standard error."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's
        """What is left after the options of the group."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(2)
        return super().parse_args(ctx, args)


class _StandIn(TyperCommand):
    """What is listed in the place of a command that has not been imported."""


class Program(CommandGroup):
    """All commands; those that were not called yet are known by name and summary only."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 - typer's
        super().__init__(**attributes)
        for command in self.commands.values():
            global_options.repeat(self.params, command)
        stand_ins = {name: _StandIn(name, help=each.help) for name, each in COMMANDS.items()}
        self.commands = stand_ins | dict(self.commands)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - typer's
        """The command that `args` begin with."""
        if not ctx.resilient_parsing:  # which Tab does
            args = _without_words(ctx, args)
        self.load(args[0])
        return super().resolve_command(ctx, args)

    def load(self, name: str) -> None:
        """Import a command, if there is one of this name and that has not been done."""
        if isinstance(self.commands.get(name), _StandIn):
            module = import_module(f"backy.cli.{COMMANDS[name].module}")
            # It has registered its commands with the application that it imports.
            self.commands.update(typer.main.get_group(module.app).commands)

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - typer's
        """Write the body of --help: the commands by what they are for, and the options."""
        width = max(map(len, COMMANDS))
        for heading, commands in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl(
                    [(f"{name:{width}}", each.help) for name, each in commands.items()]
                )
        TyperCommand.format_options(self, ctx, formatter)  # type: ignore[arg-type]


def print_version(value: bool) -> None:
    """Print it and end, where `value` says so."""
    if value:
        typer.echo(f"backy {__version__}")
        raise typer.Exit


def _without_words(context: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - typer's
    """The same with options in the place of "help" and "version"."""
    if args[0] == "version":
        print_version(value=True)
    if args == ["help"]:
        typer.echo(context.get_help())
        raise typer.Exit
    return [*args[1:], "--help"] if args[0] == "help" else args
