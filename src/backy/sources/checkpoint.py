"""How this server calls what it leaves in a storage for its next delta: snapshots, bitmaps."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass

from backy.model.revision import is_id

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.]")
_LONGEST = 64  # characters of the server's part: a name stays short enough for every storage


@dataclass(frozen=True, slots=True)
class CheckpointNames:
    """The names of one server, so that two that back up the same VM leave each other's alone."""

    server: str | None = None
    """What tells the servers apart; the name of the host by default."""

    def name(self, revision: str) -> str:
        """What belongs to a revision: "backy-20261123T004938Z-x7k2-server1"."""
        return f"backy-{revision}-{self._suffix}"

    def revision_of(self, name: str) -> str | None:
        """The id of the revision that `name` belongs to; None where it is not one of ours."""
        revision = name.removeprefix("backy-").removesuffix(f"-{self._suffix}")
        return revision if is_id(revision) and name == self.name(revision) else None

    @property
    def _suffix(self) -> str:
        return _NOT_IN_A_NAME.sub("_", self.server or platform.node())[:_LONGEST]
