"""Where the disk of a running VM can move to: a new image of Ceph, or a new file."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from backy.clients.program import output_of
from backy.clients.rbd import Rbd
from backy.errors import UsageError
from backy.system import folders

_SECTOR = 512  # bytes; sizes of QEMU's images are multiples of it
_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Destination:
    """An image that does not exist yet. Its methods raise SourceError.

    `word` is rbd:POOL/IMAGE, with ?conf=FILE&user=NAME if need be, qcow2:PATH, or the path of a
    raw file.
    """

    word: str

    def _rbd(self) -> tuple[Rbd, str] | None:
        """The cluster, and the image there; None if it is to be a file. Raises UsageError."""
        kind, _, place = self.word.partition(":")
        if kind != "rbd":
            return None
        image, _, options = place.partition("?")
        if not re.fullmatch("[^/@]+(/[^/@]+){1,2}", image):
            raise UsageError(f"{self.word!a:.200} names no image", "Write rbd:POOL/IMAGE.")
        given = dict(parse_qsl(options))
        return Rbd(given.get("conf", ""), given.get("user", ""), _SECONDS), image

    @property
    def _file(self) -> tuple[str, Path]:
        """The format and the path."""
        kind = "qcow2" if self.word.startswith("qcow2:") else "raw"
        return kind, Path(self.word.removeprefix("qcow2:")).absolute()

    def node(self) -> dict[str, object]:
        """The image as QEMU's blockdev-add takes it, without a name."""
        if place := self._rbd():
            node = json.loads(place[0].node(place[1]).removeprefix("json:"))
        else:
            kind, path = self._file
            file = {"driver": "file", "filename": str(path), "discard": "unmap"}
            node = {"driver": kind, "file": file}
        return {**node, "discard": "unmap"}

    def exists(self) -> bool:
        """Whether there is something of this name."""
        place = self._rbd()
        return place[0].exists(place[1]) if place else self._file[1].exists()

    def make(self, size: int) -> None:
        """Make the image, for a disk of `size` bytes; a file is for its owner only."""
        size += -size % _SECTOR
        if place := self._rbd():
            place[0].create(place[1], size, {})
            return
        kind, path = self._file
        command = ["qemu-img", "create", "-q", "-f", kind, str(path), str(size)]
        output_of(command, f"making {path}", timeout_seconds=_SECONDS)
        folders.allow(path, 0o600)
