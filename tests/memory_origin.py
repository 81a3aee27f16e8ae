"""A second implementation of Origin, in memory."""

from collections.abc import Mapping

from backy.model.revision import Revision


class Copy:
    """An Origin that has these disks; or, with `failure`, one that cannot be asked."""

    name = "a copy"

    def __init__(self, disks: Mapping[str, bytes] | None = None, failure: str = "") -> None:
        self.failure = ""
        self.asked = 0
        self.closed = 0
        self._failure = failure
        self._disks = disks or {}

    def read(self, revision: Revision, disk: str, number: int, digest: str) -> bytes | None:
        self.asked += 1
        self.failure = self._failure
        known = revision.disks[disk]
        start = number * known.block_size
        end = min(start + known.block_size, known.size)
        content = self._disks.get(disk, b"")
        return content[start:end] if len(content) >= end and not self.failure else None

    def close(self) -> None:
        self.closed += 1
