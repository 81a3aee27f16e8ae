"""A command whose help names arguments as people write them: JOB, not {JOB} or JOB <str>."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

Function = TypeVar("Function", bound=Callable[..., Any])
_TYPE = re.compile(r" <\S+>$")


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

    def command(
        self,
        name: str | None = None,
        *,
        cls: type[TyperCommand] | None = Command,
        **settings: Any,  # noqa: ANN401 - typer's
    ) -> Callable[[Function], Function]:
        """Register the function that it decorates."""
        return super().command(name, cls=cls, **settings)
