"""Load plug-ins by name."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from backy.errors import ConfigError


def load(group: str, name: str, built_in: Mapping[str, str]) -> Any:  # noqa: ANN401 - the caller knows
    """The plug-in `name`: of `built_in` ("module:attribute"), else of an entry point in `group`.

    Built-in plug-ins do not use entry points: reading those of all packages takes 30 ms.
    Raises ConfigError if there is none, or if it cannot be loaded.
    """
    if name in built_in:
        module, _, attribute = built_in[name].partition(":")
        return getattr(import_module(module), attribute)
    from importlib.metadata import entry_points

    for entry_point in entry_points(group=group, name=name):
        try:
            return entry_point.load()
        except (ImportError, AttributeError) as error:
            why = f"plug-in {name!r} ({entry_point.value}) cannot be loaded: {error}"
            raise ConfigError(why, "Install the plug-in again.") from error
    kind = group.rpartition(".")[2].rstrip("s")
    raise ConfigError(f"there is no {kind} {name!r}", f"Built in: {', '.join(built_in)}.")
