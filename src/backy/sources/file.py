"""Source "file": disk images in files, sparse or not, and block devices."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field

from backy.clients.local_file import clone, open_local
from backy.config.settings import DiskName, checking
from backy.errors import ConfigError
from backy.model.revision import Consistency
from backy.sources import Request, SourceSettings, TakenSnapshot, checked
from backy.sources.snapshot_data import SnapshotData


def _path(path: object) -> Path:
    """Check that a path can be opened, and shown. Raises ConfigError where it cannot."""
    shown = path if isinstance(path, str) else type(path).__name__
    if not isinstance(path, str) or not path or not path.isprintable():
        why = "cannot be the path of a source: nobody could read it in a message"
        hint = "Give it a printable name in UTF-8, by a symbolic link for example."
        raise ConfigError(f"{shown!a:.200} {why}", hint)
    return Path(path)


class FileSettings(SourceSettings):
    """Each disk's image or block device."""

    disks: dict[DiskName, Annotated[Path, BeforeValidator(checking(_path))]] = Field(min_length=1)


class FileSource:
    """A Source; see there for the contract.

    A regular file on a file system with reflink is cloned first, so that its backup is one point
    in time. Otherwise the file itself is read, and a change during the backup is reported.
    """

    is_shared = True

    def __init__(self, /, **settings: object) -> None:
        """Take {"disks": {name: absolute path}}, or as in backy 2 {"filename": absolute path}."""
        if settings.keys() == {"filename"}:
            settings = {"disks": {"vda": settings["filename"]}}
        self.paths = checked(FileSettings, settings).disks

    def look(self) -> Collection[str]:
        """See Source."""
        with ExitStack() as stack:
            for path in self.paths.values():
                stack.enter_context(open_local(path))
        return self.paths

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """See Source. Clones what can be cloned. Needs no parent: hashes tell what changed."""
        with ExitStack() as stack:
            failures: list[str] = []
            clones = {name: clone(path, stack, failures) for name, path in self.paths.items()}
            is_cloned = None not in clones.values()
            consistency = request.consistency(clones) if is_cloned else Consistency.NONE

            def open_disks(data: SnapshotData) -> None:
                for name, path in self.paths.items():
                    image = data.open(name, open_local(path, clones[name]))
                    data.final_checks.append(image.warnings)

            data = SnapshotData(request, consistency, early_warnings=failures)
            yield data.taken(open_disks)

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """Do nothing: a clone has no name, so it goes with the process."""
