"""Sources: where the data of a VM comes from. A plug-in is a class that is a `Source`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from backy.errors import ConfigError
from backy.image import Image
from backy.plugins import load
from backy.revision import Consistency, Revision


class Snapshot(Protocol):
    """One consistent view of a VM: its disks, and small files that belong to it."""

    @property
    def disks(self) -> Mapping[str, Image]:
        """By name; at least one. An image may say SAME only of what `parent` holds."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """By file name, each at most 1 MiB: a domain's XML, say."""

    @property
    def consistency(self) -> Consistency:
        """What a VM that boots from it finds."""

    def warnings(self) -> Sequence[str]:
        """What the user should know of the reading; asked when everything has been read."""

    def keep(self) -> None:
        """The revision is published: what the next delta needs may stay, older ones may go."""


class Source(Protocol):
    """Gives snapshots of one VM. Every method may raise SourceError."""

    def snapshot(self, parent: Revision | None) -> AbstractContextManager[Snapshot]:
        """Take a snapshot; leaving gives back what it took, also after an exception.

        `parent` is the newest usable revision, if there is one.
        """

    def forget(self, keep: Collection[str]) -> None:
        """Remove whatever earlier snapshots left behind, but for the revision ids in `keep`.

        Finds it by looking, not by remembering, so that leaks heal.
        """


class SourceClass(Protocol):
    """What makes a source from what repository.json remembers of it."""

    def __call__(self, **settings: object) -> Source:
        """Raises ConfigError where `settings` are not those of this kind of source."""


_BUILT_IN = {"file": "backy.sources.file:FileSource"}


def open_source(settings: Mapping[str, object]) -> Source:
    """The source that `settings` describe: its "type", and what that type needs.

    Raises ConfigError where no such type is installed or a setting is wrong.
    """
    rest = dict(settings)
    kind = rest.pop("type", None)
    if not isinstance(kind, str):
        raise ConfigError("the source has no type", "Write type: file, or by hand --source PATH.")
    made: SourceClass = load("backy.sources", kind, _BUILT_IN)
    return made(**rest)
