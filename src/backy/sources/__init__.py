"""Sources: where the data of a VM comes from. A plug-in is a class that implements `Source`.

A backup takes a snapshot in two phases, because a guest may be frozen during the first one:

    hooks freeze the guest
    with source.snapshot(request) as taken:      take: fix the content of all disks
        hooks thaw the guest
        with taken.open() as snapshot:           open: connect, and find out what changed
            the disks are copied, the revision is published
            snapshot.keep_checkpoint()
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from backy.config.settings import Values
from backy.errors import ConfigError
from backy.image.image import Image
from backy.model.revision import Consistency, Revision
from backy.plugins import load


class SourceSettings(Values):
    """The base class of each source's settings."""


ValuesT = TypeVar("ValuesT", bound=Values)


@dataclass(frozen=True, slots=True)
class Request:
    """What a snapshot is for.

    `revision` is the id of the new revision; the checkpoint for the next delta is named after it.
    `parent` is the newest usable revision, if there is one. `is_frozen` says that hooks keep the
    guest frozen while the snapshot is taken.
    """

    revision: str
    parent: Revision | None = None
    is_frozen: bool = False

    def parent_has(self, disk: str, size: int) -> bool:
        """Whether the parent has the disk, with this size in bytes."""
        old = self.parent.disks.get(disk) if self.parent else None
        return bool(old and old.size == size)


class Snapshot(Protocol):
    """The disks of a VM at one moment, open for reading, and small files that belong to it."""

    @property
    def disks(self) -> Mapping[str, Image]:
        """The disks by name; at least one. An extent is SAME only where the parent has the same."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """Contents by file name, each at most 1 MiB: a domain's XML, for example."""

    @property
    def consistency(self) -> Consistency:
        """What a VM that boots from it finds."""

    @property
    def full_read_reasons(self) -> Mapping[str, str]:
        """By disk that the parent has, too: why change tracking could not be used."""

    @property
    def image_formats(self) -> Mapping[str, str]:
        """The formats of the images that disks are kept in, as QEMU calls them, where known."""

    def warnings(self) -> Sequence[str]:
        """What an operator should know. Called once, after everything was read.

        Raises SourceError where what was read is not the content of one moment after all.
        """

    def keep_checkpoint(self) -> None:
        """Leave the checkpoint in the storage, for the next delta. Called once published.

        Otherwise it is removed when the snapshot is left.
        """


@dataclass(frozen=True, slots=True)
class TakenSnapshot:
    """A snapshot that was taken; its disks are not open yet."""

    open: Callable[[], AbstractContextManager[Snapshot]]
    """Open all disks for reading; leaving closes them. Call it once, after the guest was thawed.

    Raises SourceError where a disk cannot be opened.
    """


class Source(Protocol):
    """Gives snapshots of one VM. Every method may raise SourceError; any other error is a bug."""

    is_shared: bool
    """Whether several snapshots may exist at once, also in other processes."""

    @property
    def paths(self) -> Mapping[str, Path]:
        """The local files and devices that the settings name, by disk. A restore spares them.

        Opens and runs nothing, because somebody else may have written the repository.
        """

    def look(self) -> Collection[str]:
        """The names of the disks that a backup would read now; none if only a snapshot tells.

        Asks the storage, and opens for reading what can be opened. Takes no snapshot, leaves
        nothing behind, and does not disturb a backup that runs.
        """

    def snapshot(self, request: Request) -> AbstractContextManager[TakenSnapshot]:
        """Fix the content of all disks at one moment; leaving releases it, also after an error.

        Takes as little time as possible, because the guest may be frozen until it returns: what
        can be opened later is opened by `TakenSnapshot.open`. The checkpoint of the parent stays.
        """

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """Remove all that earlier snapshots left in the storage, except for these revision ids.

        Lists what the storage has instead of remembering it, so that nothing of a killed backup
        stays. Spares what others made, also other servers of backy. Called while this source has
        no snapshot.
        """


class SourceClass(Protocol):
    """Makes a source from its settings. It only checks them: it opens and runs nothing."""

    def __call__(self, **settings: object) -> Source:
        """Raises ConfigError where `settings` are not those of this kind of source."""


_BUILT_IN = {
    "exec": "backy.sources.exec:ExecSource",
    "file": "backy.sources.file:FileSource",
    "image": "backy.sources.image_file:ImageSource",
    "libvirt": "backy.sources.libvirt:LibvirtSource",
    "nbd": "backy.sources.nbd:NbdSource",
    "qemu": "backy.sources.qemu:QemuSource",
    "rbd": "backy.sources.rbd:RbdSource",
    "ceph-rbd": "backy.sources.rbd:RbdSource",  # as backy 2 calls it
}
_HARMLESS = ("file", "image", "nbd")


def open_source(settings: Mapping[str, object]) -> Source:
    """The source that `settings` describe: its "type", and what that type needs.

    Raises ConfigError where no such type is installed or a setting is wrong.
    """
    others = dict(settings)
    kind = others.pop("type", None)
    if not isinstance(kind, str):
        hint = "Add a type to the source, such as type: file; or use --source."
        raise ConfigError("the source has no type", hint)
    source_class: SourceClass = load("backy.sources", kind, _BUILT_IN)
    return source_class(**others)


def reject_unsafe(settings: Mapping[str, object]) -> Mapping[str, object]:
    """Give the source that a repository remembers, which somebody else may have written.

    Raises ConfigError where it could do more than read: run a program, load a library that a
    ceph.conf names, freeze a VM. Only the configuration may name a source of such a type.
    """
    kind = settings.get("type")
    if settings and kind not in _HARMLESS:
        why = f"a source of type {kind!r:.40} is only used if the configuration names it"
        raise ConfigError(why, "Add the job to the configuration, or name it with --source.")
    return settings


def checked(kind: type[ValuesT], settings: Mapping[str, object]) -> ValuesT:
    """The settings as values. Raises ConfigError that names the first one that is wrong."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        cause = getattr(first.get("ctx", {}).get("error"), "__cause__", None)
        if isinstance(cause, ConfigError):
            raise cause from error
        where = ".".join(map(str, first["loc"]))
        other = f"the source's {where or 'settings'}: {first['msg']}, not {first['input']!a:.200}"
        texts = {
            "missing": f"the source needs {where}",
            "extra_forbidden": f"this type of source has no {where}",
            "value_error": first["msg"].removeprefix("Value error, "),
        }
        names = ", ".join(field.alias or name for name, field in kind.model_fields.items())
        raise ConfigError(texts.get(first["type"], other), f"Its settings: {names}.") from error
