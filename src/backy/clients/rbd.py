"""Images of Ceph, through the program rbd. Their content is read through qemu-nbd.

An image is named as rbd names it: "pool/image" or "pool/namespace/image". A snapshot is
"IMAGE@NAME".
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import NamedTuple, TypeVar

from pydantic import BaseModel, TypeAdapter

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


class _Info(BaseModel):
    id: str


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

    def id_of(self, image: str) -> str:
        """The id of an image. Another image that had the same name before has another id."""
        return self._json(_Info.model_validate_json, "info", image).id

    def snapshots(self, image: str) -> dict[str, ListedSnapshot]:
        """The snapshots of an image by name; none where there is no such image."""
        parse = TypeAdapter(list[ListedSnapshot]).validate_json
        try:
            listed = self._json(parse, "snap", "ls", image)
        except SourceError as error:
            if _NOT_FOUND.search(error.message):
                return {}
            raise
        return {snapshot.name: snapshot for snapshot in listed}

    def create_snapshot(self, snapshot: str) -> None:
        """Create a snapshot. If that fails, it may still appear later."""
        self._call("snap", "create", "--no-progress", snapshot)

    def remove_snapshot(self, snapshot: str) -> None:
        """Remove a snapshot. If that fails, it may still vanish later."""
        self._call("snap", "rm", "--no-progress", snapshot)

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
            return self._json(parse, "diff", snapshot, *options)
        except TooMuchOutputError:
            return None

    def serve(self, snapshot: str) -> AbstractContextManager[NbdImage]:
        """The content of a snapshot, through a qemu-nbd of our own."""
        place, _, name = snapshot.partition("@")
        pool, *namespace, image = place.split("/")
        node = {"driver": "rbd", "pool": pool, "image": image, "snapshot": name}
        node |= {"user" if key == "id" else key: value for key, value in self._access.items()}
        if namespace:
            node["namespace"] = namespace[0]
        # With the driver named, QEMU does not guess a format from what a guest wrote.
        return serve([f"json:{json.dumps(node)}"], snapshot, timeout_seconds=self._timeout)

    def _json(self, parse: Callable[[bytes], Value], *arguments: str) -> Value:
        output = self._call(*arguments, "--format", "json")
        try:
            return parse(output)
        except ValueError as error:
            why = f"rbd {shlex.join(arguments)} printed something unexpected: {error!s:.200}"
            raise SourceError(why, _HINT) from error

    def _call(self, *arguments: str) -> bytes:
        seconds = self._timeout * (_DIFF_FACTOR if arguments[0] == "diff" else 1)
        access = (f"--{key}={value}" for key, value in self._access.items())
        command = ["rbd", *arguments, *access]
        title = shlex.join(command)
        try:
            return output_of(command, title, timeout_seconds=seconds, limit=_LONGEST_LIST)
        except TooMuchOutputError:
            raise
        except SourceError as error:
            raise SourceError(error.message, f"{_HINT} {error.hint}") from error
