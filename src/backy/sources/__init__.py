"""Sources: where the data of a VM comes from. A plug-in is a class that is a `Source`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from backy.config.settings import Values
from backy.errors import ConfigError
from backy.image.image import Image
from backy.model.revision import Consistency, Revision
from backy.plugins import load


class SourceSettings(Values):
    """What a source is told; the base of each source's own."""


ValuesT = TypeVar("ValuesT", bound=Values)


@dataclass(frozen=True, slots=True)
class Request:
    """What a snapshot is for.

    `revision` is the id of the revision in the making, and names what the source keeps for the
    next delta. `parent` is the newest usable revision, if there is one. `is_frozen` says that
    hooks hold the guest still while the snapshot is being taken.
    """

    revision: str
    parent: Revision | None = None
    is_frozen: bool = False

    def parent_has(self, disk: str, size: int) -> bool:
        """Whether the parent has the disk, and had it in that size."""
        old = self.parent.disks.get(disk) if self.parent else None
        return bool(old and old.size == size)


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

    @property
    def full_read_reasons(self) -> Mapping[str, str]:
        """Why all of a disk is read though the parent has it: what told the changes is gone."""

    def warnings(self) -> Sequence[str]:
        """What the user should know of the reading; asked when everything has been read."""

    def keep_checkpoint(self) -> None:
        """The revision is published: what the next delta needs stays when the snapshot is left."""


@dataclass(frozen=True, slots=True)
class TakenSnapshot:
    """A snapshot that was taken, and of which nothing is open yet."""

    open: Callable[[], AbstractContextManager[Snapshot]]
    """Open all disks for reading; leaving closes them. Call it once, when the guest runs again.

    Raises SourceError where a disk cannot be opened.
    """


@dataclass
class SnapshotData:
    """A plain Snapshot, filled in by its source."""

    consistency: Consistency
    disks: dict[str, Image] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    full_read_reasons: dict[str, str] = field(default_factory=dict)
    early_warnings: list[str] = field(default_factory=list)
    final_checks: list[Callable[[], Iterable[str]]] = field(default_factory=list)
    """What to ask for more warnings when everything has been read."""
    keeps_checkpoint: bool = False

    def warnings(self) -> Sequence[str]:
        """See Snapshot."""
        late = (warning for check in self.final_checks for warning in check())
        return [*self.early_warnings, *late]

    def keep_checkpoint(self) -> None:
        """See Snapshot."""
        self.keeps_checkpoint = True


class Source(Protocol):
    """Gives snapshots of one VM. Every method may raise SourceError."""

    is_shared: bool
    """Whether several snapshots may be open at once, also in other processes."""

    @property
    def paths(self) -> Mapping[str, Path]:
        """The local files and devices that its settings name, by disk; a restore spares them.

        Nothing is opened or run for it, because a repository may have been made by somebody else.
        """

    def snapshot(self, request: Request) -> AbstractContextManager[TakenSnapshot]:
        """Fix what all disks hold at one moment; leaving releases that, also after an exception.

        The guest may be frozen meanwhile, so nothing is opened that can be opened later.
        What the parent's delta needs stays as good as it was, unless `remove_all_except` is called.
        """

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """Remove whatever earlier snapshots left behind, but for the revision ids in `keep`.

        Finds it by looking, not by remembering, so that leaks heal. Leaves alone what others
        made, also other servers of backy. No snapshot of this source is open.
        """


class SourceClass(Protocol):
    """What makes a source from its settings. It only looks at them: it opens and runs nothing."""

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
    rest = dict(settings)
    kind = rest.pop("type", None)
    if not isinstance(kind, str):
        raise ConfigError("the source has no type", "Write type: file, or by hand --source PATH.")
    made: SourceClass = load("backy.sources", kind, _BUILT_IN)
    return made(**rest)


def reject_unsafe(settings: Mapping[str, object]) -> Mapping[str, object]:
    """Give what a repository remembers of its source, which somebody else may have written.

    Raises ConfigError where more than reading could come of that: a program that is run, a
    ceph.conf that names a library, a VM that is frozen. Such types only the configuration names.
    """
    kind = settings.get("type")
    if settings and kind not in _HARMLESS:
        hint = "Name the job in the configuration."
        raise ConfigError(
            f"a source of type {kind!r:.40} is taken from the configuration only", hint
        )
    return settings


def checked(kind: type[ValuesT], settings: Mapping[str, object]) -> ValuesT:
    """The settings of a source as values. Raises ConfigError that names the first that is wrong."""
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
        known = ", ".join(field.alias or name for name, field in kind.model_fields.items())
        raise ConfigError(texts.get(first["type"], other), f"Its settings: {known}.") from error
