"""Every command of the program, by what one types: also those that belong to another, such as
"reports show". What does nothing by itself, such as "config", is no command.
"""

from collections.abc import Iterator
from typing import Any

from tools.make_man import whole_program

GROUP: Any = whole_program()


def _within(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - typer's
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if getattr(command, "invoke_without_command", True):
            yield f"{before}{name}", command
        if hasattr(command, "commands"):
            yield from _within(command, f"{before}{name} ")


COMMANDS: dict[str, Any] = dict(sorted(_within(GROUP)))


def own_parameters(command: Any) -> list[Any]:  # noqa: ANN401 - typer's
    """The parameters of a command without those of the program, which every command takes, too."""
    repeated = {"--base-dir", "--config"} if command is not GROUP else set()
    taken = [*command.params]
    if default := getattr(command, "commands", {}).get("list"):  # what "reports JOB" calls
        taken += default.params if default.hidden else []
    return [each for each in taken if not repeated & set(each.opts)]
