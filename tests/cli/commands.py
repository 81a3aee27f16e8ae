"""Every command of the program, by what one types: also those that belong to another, such as
"reports show". What does nothing by itself, such as "config", is no command.
"""

from collections.abc import Iterator
from typing import Any

import typer.main

import backy.cli.execute  # noqa: F401 - importing it adds the commands
from backy.cli.app import app

GROUP: Any = typer.main.get_group(app)


def _within(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - typer's
    for name, command in group.commands.items():
        if getattr(command, "invoke_without_command", True):
            yield f"{before}{name}", command
        if hasattr(command, "commands"):
            yield from _within(command, f"{before}{name} ")


COMMANDS: dict[str, Any] = dict(sorted(_within(GROUP)))
