"""Images of Ceph, through the program rbd. Their content is read through qemu-nbd.

An image is named as rbd names it: "pool/image" or "pool/namespace/image". A snapshot is
"IMAGE@NAME". Each part may have any character but "/" and "@".
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, Field, TypeAdapter

from backy.clients.program import TooMuchOutputError, output_of
from backy.clients.qemu_nbd import serve
from backy.errors import SourceError
from backy.model.extent import Extent, Kind, cover
from backy.nbd.remote_image import NbdImage
from backy.units import MiB

Value = TypeVar("Value")

# What rbd prints where there is no such image, pool or namespace. Its exit code tells less: it is
# the same where there is no keyring.
_NOT_FOUND = re.compile(r"error opening (image|pool) .*: \(2\)|namespace .* does not exist")
_LONGEST_LIST = 16 * MiB  # bytes of JSON; 1 TiB has that much if no two objects are joined
_DIFF_FACTOR = 10  # a diff visits each object, so it may take ten times as long
_HINT = "Do the monitors answer, does it exist, and may this user do it? See docs/sources/rbd.md."
_MIGRATION_HINT = "Run it again after: rbd migration commit (or abort). Nothing was changed."
_MIRROR_HINT = "Back it up where it is primary, or promote it. Nothing was changed."
_MAP_HINT = "Make it again: rbd object-map rebuild {}. Then run the backup again."


class _Mirroring(BaseModel):
    primary: bool = True


class _Parent(BaseModel):
    id: str = ""
    snapshot: str = ""


class _Watcher(BaseModel):
    address: str = Field(max_length=200)


class _Status(BaseModel):
    watchers: list[_Watcher] = []


class _Info(BaseModel):
    id: str = Field(max_length=64, pattern="^[A-Za-z0-9._-]*$")  # is put into names of snapshots
    features: list[str] = []
    flags: list[str] = []
    mirroring: _Mirroring = _Mirroring()
    parent: _Parent = _Parent()


class ImageState(NamedTuple):
    """What must not change while an image is backed up.

    Another image that had the same name before has another `id`. A flattened clone has no `parent`.
    """

    id: str
    parent: _Parent


class ListedSnapshot(BaseModel):
    """A snapshot of an image. `size` is the image's in bytes when it was taken."""

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


class Rbd:
    """Calls to one cluster as one user. All methods raise SourceError where rbd fails.

    `conf` and `user` are those of rbd where they are "". Each call takes `timeout_seconds` at most,
    a diff ten times that.
    """

    def __init__(self, conf: str, user: str, timeout_seconds: float) -> None:
        access = {"conf": conf, "id": user}
        self._access = {key: value for key, value in access.items() if value}
        self._timeout = timeout_seconds

    def state_of(self, image: str) -> ImageState:
        """The state of an image, which may get and lose snapshots.

        Raises SourceError where it must not. While it migrates, librbd 16.2 crashes in each client
        that writes to it once a snapshot was removed.
        """
        info = self._info(image)
        if "migrating" in info.features:
            raise SourceError(f"{image} is being migrated (rbd migration)", _MIGRATION_HINT)
        if not info.mirroring.primary:
            raise SourceError(f"{image} is a mirror, and not primary", _MIRROR_HINT)
        return ImageState(info.id, info.parent)

    def exists(self, image: str) -> bool:
        """Whether there is an image of this name; see `state_of` for images that are refused."""
        try:
            self.state_of(image)
        except SourceError as error:
            if _NOT_FOUND.search(error.message):
                return False
            raise
        return True

    def watchers(self, image: str) -> list[str]:
        """The addresses of those who have an image open."""
        status = self._json(_Status.model_validate_json, ["status"], image)
        return [watcher.address for watcher in status.watchers]

    def create(self, image: str, size: int, options: Mapping[str, str]) -> None:
        """Make an image of `size` bytes, with options of `rbd create` such as data-pool."""
        self._call(["create"], image, f"--size={size}B", *_options(options))

    def name_anew(self, image: str, name: str) -> None:
        """Give an image another name in the same pool and namespace."""
        place = {f"dest-{key}": value for key, value in _place(image).items() if key != "image"}
        self._call(["rename"], image, *_options(place), f"--dest={name}")

    def remove(self, image: str) -> None:
        """Delete an image and all that it holds."""
        self._call(["rm"], image, "--no-progress")

    def snapshots(self, image: str) -> dict[str, ListedSnapshot]:
        """The snapshots of an image by name; none where there is no such image."""
        parse = TypeAdapter(list[ListedSnapshot]).validate_json
        try:
            listed = self._json(parse, ["snap", "ls"], image)
        except SourceError as error:
            if _NOT_FOUND.search(error.message):
                return {}
            raise
        return {snapshot.name: snapshot for snapshot in listed}

    def create_snapshot(self, snapshot: str) -> None:
        """Create a snapshot. If that fails, it may still appear later."""
        self._call(["snap", "create"], snapshot, "--no-progress")

    def remove_snapshot(self, snapshot: str, image_id: str) -> None:
        """Remove a snapshot of the image with this id. If that fails, it may still vanish later.

        If a migration has begun since `state_of`, the name leads to its destination. The id is that
        of its source, which Ceph protects: raises SourceError then.
        """
        self._call(["snap", "rm"], snapshot, "--no-progress", image_id=image_id)

    def extents(
        self, snapshot: str, base: str | None, size: int, *, whole_object: bool = False
    ) -> list[Extent] | None:
        """All extents of a snapshot of `size` bytes; SAME where the snapshot `base` has the same.

        Without `base`, what the cluster does not store is ZERO. `whole_object` compares whole
        objects, which is faster. None where the list is too long.
        """
        gap = Kind.SAME if base else Kind.ZERO

        def parse(output: bytes) -> list[Extent]:
            changes = TypeAdapter(list[_Change]).validate_json(output)
            return list(cover((change.extent() for change in changes), size, gap))

        options = ["--from-snap", base] if base else []
        options += ["--whole-object"] if whole_object else []
        try:
            return self._json(parse, ["diff"], snapshot, *options)
        except TooMuchOutputError:
            return None

    @contextmanager
    def serve(self, snapshot: str) -> Iterator[NbdImage]:
        """The content of a snapshot, through a qemu-nbd of our own."""
        image, _, _ = snapshot.partition("@")
        with ExitStack() as stack:
            try:
                opening = serve([self.node(snapshot)], snapshot, timeout_seconds=self._timeout)
                content = stack.enter_context(opening)
            except SourceError as error:
                is_absent = "No such file" in error.message
                if is_absent and "object map invalid" in self._info(snapshot).flags:
                    why = f"{image} has lost its object map: {error.message}"
                    raise SourceError(why, _MAP_HINT.format(shlex.quote(image))) from error
                raise
            yield content

    def node(self, spec: str) -> str:
        """An image or a snapshot as an argument of qemu-nbd, which guesses no format from it."""
        image, _, snapshot = spec.partition("@")
        node = {"driver": "rbd", **_place(image), **({"snapshot": snapshot} if snapshot else {})}
        node |= {"user" if key == "id" else key: value for key, value in self._access.items()}
        return f"json:{json.dumps(node)}"

    def _info(self, spec: str) -> _Info:
        return self._json(_Info.model_validate_json, ["info"], spec)

    def _json(
        self, parse: Callable[[bytes], Value], command: list[str], spec: str, *options: str
    ) -> Value:
        options = (*options, "--format", "json")
        output = self._call(command, spec, *options)
        try:
            return parse(output)
        except ValueError as error:
            what = shlex.join(["rbd", *command, spec, *options])
            why = f"{what} printed something unexpected: {error!s:.200}"
            raise SourceError(why, _HINT) from error

    def _call(self, command: list[str], spec: str, *options: str, image_id: str = "") -> bytes:
        """Run rbd. Names are passed as values, so that none is taken for an option."""
        image, _, snapshot = spec.partition("@")
        names = _place(image) | ({"snap": snapshot} if snapshot else {})
        if image_id:
            del names["image"]
            names["image-id"] = image_id
        seconds = self._timeout * (_DIFF_FACTOR if command == ["diff"] else 1)
        access = _options(self._access)
        words = ["rbd", *command, *_options(names), *options, *access]
        title = shlex.join(["rbd", *command, spec, *options, *access])
        try:
            return output_of(words, title, timeout_seconds=seconds, limit=_LONGEST_LIST)
        except TooMuchOutputError:
            raise
        except SourceError as error:
            raise SourceError(error.message, f"{_HINT} {error.hint}") from error


def _options(values: Mapping[str, str]) -> list[str]:
    return [f"--{key}={value}" for key, value in values.items()]


def _place(image: str) -> dict[str, str]:
    """The parts of an image's name, as rbd and QEMU call them."""
    pool, *namespace, name = image.split("/")
    return {"pool": pool} | ({"namespace": namespace[0]} if namespace else {}) | {"image": name}
