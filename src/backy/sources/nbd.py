"""Source "nbd": the exports of any NBD server, and what QEMU's dirty bitmaps say of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from backy.config.settings import DiskName
from backy.model.revision import Consistency
from backy.nbd.remote_image import open_image
from backy.nbd.uri import parse_uri
from backy.sources import Request, SourceSettings, TakenSnapshot, checked
from backy.sources.snapshot_data import SnapshotData


def _template(text: str) -> str:
    if text.count("{parent}") != 1:
        raise ValueError("it must contain {parent} once, where the id of a revision belongs")
    return text


class NbdSettings(SourceSettings):
    """See docs/sources/nbd.md."""

    disks: dict[DiskName, str] = Field(min_length=1)
    bitmap: Annotated[str, AfterValidator(_template)] | None = None
    is_snapshot: bool = False


class NbdSource:
    """A Source; see there for the contract."""

    is_shared = True

    def __init__(self, /, **settings: object) -> None:
        self.settings = checked(NbdSettings, settings)
        self.paths: dict[str, Path] = {}
        self._disks = {name: parse_uri(uri) for name, uri in self.settings.disks.items()}

    def look(self) -> Collection[str]:
        """See Source. One connection at a time, because a server may take no more."""
        for address in self._disks.values():
            with open_image(address):
                pass
        return self._disks

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """See Source. Takes nothing: whoever made the exports keeps them as they are."""
        yield TakenSnapshot(partial(self._open, request))

    @contextmanager
    def _open(self, request: Request) -> Iterator[SnapshotData]:
        is_one_moment = len(self._disks) == 1 or request.is_frozen
        is_crash = self.settings.is_snapshot and is_one_moment
        data = SnapshotData(Consistency.CRASH if is_crash else Consistency.NONE)
        old_disks = request.parent.disks if request.parent else {}
        with ExitStack() as stack:
            for name, address in self._disks.items():
                bitmap = self._bitmap(request) if name in old_disks else None
                image = stack.enter_context(open_image(address, bitmap=bitmap))
                if image.tracks_changes and not request.parent_has(name, image.size):
                    image.tracks_changes = False
                    why = f"it was resized, so the bitmap {bitmap} is not enough"
                    data.full_read_reasons[name] = why
                elif bitmap and not image.tracks_changes:
                    data.full_read_reasons[name] = f"{address} has no bitmap {bitmap}"
                data.disks[name] = image
            yield data

    def _bitmap(self, request: Request) -> str | None:
        """Name the bitmap that was started with the parent, and with no other revision."""
        if not (request.parent and self.settings.bitmap):
            return None
        return self.settings.bitmap.replace("{parent}", request.parent.id)

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """Do nothing: the exports and their bitmaps are somebody else's."""
