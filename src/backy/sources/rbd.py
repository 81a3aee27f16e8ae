"""Source "rbd": images of Ceph, by snapshots and by the cluster's own list of what changed.

A snapshot is called backy-REVISION-SERVER-DISK-ID, with the id that Ceph gave the image. So a delta
is made only against what this server took of this disk for the parent, in this very image: not
in a copy of it, nor in another one that has its name today.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import UserDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter

from backy.clients.program import ask
from backy.clients.qemu_nbd import serve
from backy.config.settings import AbsolutePath, DiskName, Seconds
from backy.errors import SourceError
from backy.image.image import Image
from backy.image.workers import in_parallel
from backy.model.extent import Extent, Kind, cover
from backy.model.revision import Consistency
from backy.nbd.remote_image import NbdImage
from backy.sources import Request, SnapshotData, SourceSettings, checked
from backy.sources.checkpoint import CheckpointNames
from backy.units import MiB

Value = TypeVar("Value")

_PLACE = ("pool", "namespace", "image")
# What `rbd` says where there is no such image, pool or namespace. Its exit code says less: it is
# the same where there is no keyring.
_VANISHED = re.compile(r"error opening (image|pool) .*: \(2\)|namespace .* does not exist")
_LONGEST_LIST = 16 * MiB  # bytes of JSON; 1 TiB has that much if no two objects are joined
_TOO_LONG = f"said more than {_LONGEST_LIST} bytes"
_DIFF_TAKES = 10  # times as long as other calls: it looks at each object
_HINT = "Do the monitors answer, is it there, and may this user do it? See docs/sources/rbd.md."
_GONE_HINT = "Run it again. Jobs that read the same image each need a `server` of their own."


def _joined(value: object) -> object:
    if isinstance(value, dict) and {"pool", "image"} <= value.keys() <= set(_PLACE):
        return "/".join(str(value[key]) for key in _PLACE if key in value)
    return value


_WORD = r"[^-/@\s][^/@\s]*"
_Word = Annotated[str, Field(pattern=f"^{_WORD}$")]
_Image = Annotated[str, BeforeValidator(_joined), Field(pattern=f"^{_WORD}(/{_WORD}){{1,2}}$")]


class RbdSettings(SourceSettings):
    """See docs/sources/rbd.md. A disk is "pool/image" or "pool/namespace/image"."""

    disks: dict[DiskName, _Image] = Field(min_length=1)
    cluster: _Word | None = None
    conf: AbsolutePath | None = None
    user: _Word | None = None
    server: str | None = None
    full_always: bool = False
    whole_object: bool = False
    timeout: Seconds = Field(default=60, ge=1)


class _Known(BaseModel):
    id: str


class _Listed(BaseModel):
    id: int
    name: str
    size: int
    protected: bool


class _Change(NamedTuple):
    offset: int
    length: int
    exists: bool

    def extent(self) -> Extent:
        return Extent(self.offset, self.length, Kind.DATA if self.exists else Kind.ZERO)


class RbdSource:
    """A Source; see there for the contract. An image, and a snapshot of one, is named as by `rbd`.

    All methods raise SourceError.
    """

    is_shared = True

    def __init__(self, /, **settings: object) -> None:
        """Take the settings, or those of backy 2 for one disk, which is vda then."""
        if "pool" in settings and "disks" not in settings:
            place = {key: settings.pop(key) for key in _PLACE if key in settings}
            settings["disks"] = {"vda": place}
        self.settings = known = checked(RbdSettings, settings)
        self.paths: dict[str, Path] = {}
        self.names = CheckpointNames(known.server)
        # Programs take the name of the cluster from that of the file.
        conf = known.conf or (known.cluster and f"/etc/ceph/{known.cluster}.conf")
        access = {"conf": str(conf or ""), "id": known.user or ""}
        self._access = {key: value for key, value in access.items() if value}

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[RbdSnapshot]:
        """See Source. Waits for nothing but the snapshots, as the guest may be frozen."""
        taken = RbdSnapshot(self, request)
        points = [taken.point(disk, request.revision) for disk in taken.ids]
        try:
            # The monitors take a second for each, and the same second for all.
            _at_once(partial(self.snap, "create"), points)
            with taken.stack:
                yield taken
        finally:
            if not taken.keeps_checkpoint:
                _at_once(self._drop, points)

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """See Source. A snapshot that somebody protected stays."""
        unwanted = [
            f"{image}@{name}"
            for image in self.settings.disks.values()
            for name, each in self.points(image).items()
            if (revision := self.revision_of(name)) and revision not in revisions
            if not each.protected
        ]
        _at_once(partial(self.snap, "rm"), unwanted)

    def revision_of(self, name: str) -> str | None:
        """The revision for which this server took a snapshot with this name; or None."""
        return self.names.revision_of("-".join(name.split("-")[:4]))

    def snap(self, verb: str, point: str) -> None:
        """Create or rm a snapshot. If that fails, it may still happen later."""
        self._call("snap", verb, "--no-progress", point)

    def _drop(self, point: str) -> None:
        with suppress(SourceError):  # what stays the next `remove_all_except` finds
            self.snap("rm", point)

    def id_of(self, image: str) -> str:
        """What tells it from one that has its name because it was made anew, copied or renamed."""
        return self._asked(_Known.model_validate_json, "info", image).id

    def points(self, image: str) -> dict[str, _Listed]:
        """Its snapshots by name; none where there is no such image."""
        try:
            listed = self._asked(TypeAdapter(list[_Listed]).validate_json, "snap", "ls", image)
        except SourceError as error:
            if _VANISHED.search(error.message):
                return {}
            raise
        return {each.name: each for each in listed}

    def extents(self, point: str, base: str | None, size: int) -> list[Extent] | None:
        """All of a snapshot of `size` bytes, SAME where the snapshot called `base` has the same.

        Without that, what the cluster does not store is ZERO. None where the list is too long.
        """

        def made(said: bytes) -> list[Extent]:
            told = TypeAdapter(list[_Change]).validate_json(said)
            gap = Kind.SAME if base else Kind.ZERO
            return list(cover((each.extent() for each in told), size, gap))

        since = ["--from-snap", base] if base else []
        objects = ["--whole-object"] if self.settings.whole_object else []
        try:
            return self._asked(made, "diff", point, *since, *objects)
        except SourceError as error:
            if _TOO_LONG in error.message:
                return None
            raise

    def serve(self, point: str) -> AbstractContextManager[NbdImage]:
        """The content of a snapshot."""
        image, _, name = point.partition("@")
        pool, *namespace, image = image.split("/")
        node = {"driver": "rbd", "pool": pool, "image": image, "snapshot": name}
        node |= {"user" if key == "id" else key: each for key, each in self._access.items()}
        if namespace:
            node["namespace"] = namespace[0]
        # With the driver named, QEMU does not guess a format from what a guest wrote.
        return serve([f"json:{json.dumps(node)}"], point, timeout_seconds=self.settings.timeout)

    def _asked(self, make: Callable[[bytes], Value], *arguments: str) -> Value:
        said = self._call(*arguments, "--format", "json")
        try:
            return make(said)
        except ValueError as error:
            why = f"rbd {shlex.join(arguments)} said something else than it should"
            raise SourceError(f"{why}: {error!s:.200}", _HINT) from error

    def _call(self, *arguments: str) -> bytes:
        seconds = self.settings.timeout * (_DIFF_TAKES if arguments[0] == "diff" else 1)
        command = ["rbd", *arguments, *(f"--{key}={self._access[key]}" for key in self._access)]
        try:
            what = shlex.join(command)
            return ask(command, what, timeout_seconds=seconds, limit=_LONGEST_LIST)
        except SourceError as error:
            raise SourceError(error.message, f"{_HINT} {error.hint}") from error


class RbdSnapshot(SnapshotData):
    """A Snapshot; see there for the contract. Disks are opened when the first is asked for."""

    def __init__(self, source: RbdSource, request: Request) -> None:
        is_one = len(source.settings.disks) == 1 or request.is_frozen
        super().__init__(_Late(self._open), Consistency.CRASH if is_one else Consistency.NONE)
        self.ids = {disk: source.id_of(image) for disk, image in source.settings.disks.items()}
        self.stack = ExitStack()
        self._source, self._request = source, request
        self._used: dict[str, set[int]] = {}

    def warnings(self) -> Sequence[str]:
        """See Snapshot. Raises SourceError where a snapshot that was used is not there any more.

        When one is removed librbd still answers a read or two, with what the image holds by then.
        """
        for image, used in self._used.items():
            if used - {each.id for each in self._source.points(image).values()}:
                raise SourceError(f"a snapshot of {image} was removed while we read", _GONE_HINT)
        return self.early_warnings

    def point(self, disk: str, revision: str) -> str:
        """The snapshot of a disk as it is called if it was taken for this revision."""
        image, mark = self._source.settings.disks[disk], self._source.names
        return f"{image}@{mark.name(revision)}-{disk}-{self.ids[disk]}"

    def _open(self) -> dict[str, Image]:
        return {disk: self._image(disk) for disk in self.ids}

    def _image(self, disk: str) -> RbdImage:
        source, point = self._source, self.point(disk, self._request.revision)
        image, _, name = point.partition("@")
        points = source.points(image)
        self.early_warnings += [
            f"{image}@{each} is needed no more, but protected; it stays"
            for each in points
            if points[each].protected and source.revision_of(each)
        ]
        content = self.stack.enter_context(source.serve(point))
        # QEMU counts in sectors, and rounds up.
        size = points[name].size if name in points else content.size
        base = self._base(disk, points, size)
        self._used[image] = {points[each].id for each in (name, base) if each in points}
        extents = source.extents(point, base, size)
        if base and extents is None:
            self.full_read_reasons[disk] = "the list of its changes is too long"
        if extents is None and size != content.size:
            extents = [Extent(0, size, Kind.DATA)]
        return RbdImage(content, extents, size)

    def _base(self, disk: str, points: Mapping[str, _Listed], size: int) -> str | None:
        """The snapshot of the parent that tells what changed since; or None, and why in `whole`."""
        parent = self._request.parent
        if self._source.settings.full_always or not parent or disk not in parent.disks:
            return None
        point = self.point(disk, parent.id)
        name = point.partition("@")[2]
        old = points.get(name)
        if not old:
            why = "is gone, or was taken of another image or disk"
        elif old.protected:
            why = "was protected by somebody"
        elif not self._request.parent_has(disk, size) or old.size != size:
            why = "has another size: the image was resized"
        else:
            return name
        self.full_read_reasons[disk] = f"{point} {why}"
        return None


class _Late(UserDict[str, Image]):
    """What is made when it is asked for."""

    def __init__(self, make: Callable[[], dict[str, Image]]) -> None:
        self._make = make

    @cached_property
    def data(self) -> dict[str, Image]:  # type: ignore[override]
        return self._make()


class RbdImage:
    """The content that qemu-nbd serves, with the extents that the cluster tells."""

    def __init__(self, content: NbdImage, extents: list[Extent] | None, size: int) -> None:
        self.size = size
        self.readinto = content.readinto
        self.extents = content.extents if extents is None else extents.__iter__


def _at_once(act: Callable[[str], None], points: Sequence[str]) -> None:
    in_parallel(iter(points), lambda point, _: act(point), 1, min(len(points), 8) or 1)
