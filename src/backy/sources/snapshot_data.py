"""SnapshotData: what the sources here fill in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from backy.image.image import Image
from backy.model.revision import Consistency


@dataclass
class SnapshotData:
    """A plain Snapshot, filled in by its source."""

    consistency: Consistency
    disks: dict[str, Image] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    full_read_reasons: dict[str, str] = field(default_factory=dict)
    image_formats: dict[str, str] = field(default_factory=dict)
    early_warnings: list[str] = field(default_factory=list)
    final_checks: list[Callable[[], Iterable[str]]] = field(default_factory=list)
    """Called after everything was read; each gives more warnings, or raises SourceError."""
    keeps_checkpoint: bool = False

    def warnings(self) -> Sequence[str]:
        """See Snapshot."""
        late_warnings = (warning for check in self.final_checks for warning in check())
        return [*self.early_warnings, *late_warnings]

    def keep_checkpoint(self) -> None:
        """See Snapshot."""
        self.keeps_checkpoint = True
