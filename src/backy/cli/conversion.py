"""Values of options and arguments, converted without pydantic, whose import takes longest of all.

typer imports it for each command that has an option, even to make text of a text. Where typer
has changed so that this does not fit any more, it converts by itself, with the same results.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


class _Conversion:
    """Stands for typer's RuntimeParam."""

    def __init__(self, parse: Callable[[Any], Any]) -> None:
        self._parse = parse

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:  # noqa: ANN401 - as typer's
        """The value that the command gets; of an option that may be repeated, all of them."""
        if param.multiple or param.nargs == -1:
            return tuple(self._parse(each) for each in value or ())
        return None if value is None else self._parse(value)


def simplify(command: Any) -> None:  # noqa: ANN401 - typer's
    """Have a command, and those within it, convert text, switches and what has a parser."""
    for parameter in command.params:
        _simplify(parameter)
    command.get_help_option = partial(_help_option, command.get_help_option)
    for inner in getattr(command, "commands", {}).values():
        simplify(inner)


def _help_option(make: Callable[[Any], Any], context: Any) -> Any:  # noqa: ANN401 - typer's
    """The option --help, which typer makes when it is asked for it."""
    option = make(context)
    if option:
        _simplify(option)
    return option


def _simplify(parameter: Any) -> None:  # noqa: ANN401 - typer's
    descriptor = getattr(parameter, "type_descriptor", None)
    parse = getattr(getattr(descriptor, "parameter_info", None), "parser", None)
    parse = parse or _BY_TYPE.get(getattr(descriptor, "annotation", None))
    if parse and hasattr(parameter, "get_runtime_param"):
        parameter.get_runtime_param = partial(_Conversion, parse)


_BY_TYPE: dict[Any, Callable[[Any], Any]] = {bool: bool, str: str, list[str]: str}
