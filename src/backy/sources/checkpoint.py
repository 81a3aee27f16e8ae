"""Names of the snapshots, bitmaps and checkpoints this server keeps for its next delta."""

import platform
import re
from dataclasses import dataclass

from backy.model.revision import is_id

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_.]")
_LONGEST_SERVER = 64  # characters, so that a name is short enough for every storage


@dataclass(frozen=True, slots=True)
class CheckpointNames:
    """The checkpoint names of one server; each server that backs up a VM has its own."""

    server: str | None = None
    """The server's part of each name; by default the host's name."""

    def name(self, revision: str) -> str:
        """The checkpoint of a revision: "backy-20261123T004938Z-x7k2-server1"."""
        return f"backy-{revision}-{self._suffix}"

    def revision_of(self, name: str) -> str | None:
        """The id of the revision whose checkpoint is called `name`; None where it is not ours."""
        revision = name.removeprefix("backy-").removesuffix(f"-{self._suffix}")
        return revision if is_id(revision) and name == self.name(revision) else None

    @property
    def _suffix(self) -> str:
        return _NOT_IN_A_NAME.sub("_", self.server or platform.node())[:_LONGEST_SERVER]
