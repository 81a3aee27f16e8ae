"""Where the disk of a running VM can move to: a new image of Ceph, or a new file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from backy.clients.program import output_of
from backy.clients.rbd import Rbd
from backy.errors import UsageError
from backy.system import folders

_SECTOR = 512  # bytes; sizes of QEMU's images are multiples of it
_SECONDS = 60
_RBD, _QCOW2 = "rbd:", "qcow2:"


@dataclass(frozen=True, slots=True)
class Destination:
    """An image that does not exist yet. Its methods raise SourceError.

    `word` is rbd:POOL/IMAGE, with ?conf=FILE&user=NAME if need be, qcow2:PATH, or the path of a
    raw file.
    """

    word: str

    def _rbd(self) -> tuple[Rbd, str]:
        """A cluster, and the image there. Raises UsageError."""
        image, _, options = self.word.removeprefix(_RBD).partition("?")
        given = dict(parse_qsl(options))
        if not all(parts := image.split("/")) or len(parts) not in {2, 3} or "@" in image:
            raise UsageError(f"{self.word!a:.200} names no image", "Write rbd:POOL/IMAGE.")
        return Rbd(given.get("conf", ""), given.get("user", ""), _SECONDS), image

    @property
    def _path(self) -> Path:
        return Path(self.word.removeprefix(_QCOW2)).absolute()

    @property
    def _format(self) -> str:
        return "qcow2" if self.word.startswith(_QCOW2) else "raw"

    def node(self) -> dict[str, object]:
        """The image as QEMU's blockdev-add takes it, without a name."""
        if self.word.startswith(_RBD):
            cluster, image = self._rbd()
            return {**json.loads(cluster.node(image).removeprefix("json:")), "discard": "unmap"}
        file = {"driver": "file", "filename": str(self._path), "discard": "unmap"}
        return {"driver": self._format, "discard": "unmap", "file": file}

    def exists(self) -> bool:
        """Whether there is something of this name."""
        if self.word.startswith(_RBD):
            cluster, image = self._rbd()
            return cluster.exists(image)
        return self._path.exists()

    def make(self, size: int) -> None:
        """Make the image, for a disk of `size` bytes; a file is for its owner only."""
        size += -size % _SECTOR
        if self.word.startswith(_RBD):
            cluster, image = self._rbd()
            cluster.create(image, size, {})
            return
        command = ["qemu-img", "create", "-q", "-f", self._format, str(self._path), str(size)]
        output_of(command, f"making {self._path}", timeout_seconds=_SECONDS)
        folders.allow(self._path, 0o600)
