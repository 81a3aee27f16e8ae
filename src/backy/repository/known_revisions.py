"""Revisions that this process has read, so that it need not read all of a long history again.

The daemon looks at a history after each backup. It remembers revisions in memory only. What it
remembers counts as long as the revision.json is the same file, unchanged.
"""

import os
import time

from backy.model.revision import Revision
from backy.repository.records import read_revision
from backy.system.place import Place
from backy.units import KiB, MiB

_MOST = 32 * MiB  # of revision.json, each with 1 KiB more: 20,000 with one disk, in 50 MiB
# A file that is younger can change again, and have the same times: file systems measure them in
# steps, of up to two seconds.
_SETTLED = 2 * 10**9  # nanoseconds


class KnownRevisions:
    """For all threads. Forgets everything when it has become too much."""

    def __init__(self, most: int = _MOST) -> None:
        """Remember revisions until their revision.json have `most` bytes together."""
        self._most = most
        self._left = most
        self._known: dict[tuple[str | int, ...], Revision] = {}

    def revision(self, path: Place, status: os.stat_result, block_size: int) -> Revision:
        """The revision at `path`, as `read_revision` gives it; `status` is from just before."""
        file = status.st_dev, status.st_ino, status.st_size
        key = (path.parent.name, block_size, *file, status.st_mtime_ns, status.st_ctime_ns)
        if known := self._known.get(key):
            return known
        is_settled = status.st_ctime_ns < time.time_ns() - _SETTLED
        revision = read_revision(path, block_size)
        if is_settled:
            if self._left < 0:
                self._known.clear()
                self._left = self._most
            self._left -= status.st_size + KiB
            self._known[key] = revision
        return revision
