"""Source "exec": a program of the administrator's that takes snapshots and says what changed.

The protocol is in docs/sources/exec.md. The program is trusted as backy is; what it prints is
checked all the same, because a map of changes that is wrong loses data without a trace.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import Base64Bytes, BeforeValidator, Field

from backy.clients.image_format import ImageFile, open_image_file
from backy.clients.local_file import open_local
from backy.clients.program import ask
from backy.config.settings import DiskName, Seconds, checking
from backy.errors import ConfigError, SourceError
from backy.image.image import Image
from backy.model.extent import Extent, Kind
from backy.model.revision import Consistency
from backy.nbd.remote_image import open_image
from backy.nbd.uri import Address, parse_uri
from backy.sources import Request, SnapshotData, SourceSettings, TakenSnapshot, checked

_HINT = "What a program has to print is in docs/sources/exec.md."
_LINE = re.compile(rb"([0-9]{1,19}) ([1-9][0-9]{0,18}) (data|zero|same)\n")


class ExecSettings(SourceSettings):
    """See docs/sources/exec.md. `settings` go to the program as they are."""

    command: tuple[str, ...] = Field(min_length=1)
    settings: dict[str, Any] = Field(default={})
    timeout: Seconds = Field(default=600, ge=1)


def _place(value: object) -> Address | Path:
    text = str(value)
    if text.startswith("/") and text.isprintable():
        return Path(text)
    return parse_uri(text)


class _Disk(SourceSettings):
    read: Annotated[Address | Path, BeforeValidator(checking(_place))]
    format: str = Field(default="raw", min_length=1)
    changes_since: str = ""


class _Answer(SourceSettings):
    disks: dict[DiskName, _Disk] = Field(min_length=1)
    consistency: Consistency = Consistency.NONE
    files: dict[DiskName, Base64Bytes] = Field(default={})


class ExecSource:
    """A Source; see there for the contract."""

    is_shared = False

    def __init__(self, /, **settings: object) -> None:
        self.settings = checked(ExecSettings, settings)

    @property
    def paths(self) -> Mapping[str, Path]:
        """See Source. Only the program can tell a disk from other paths, so all of them count."""
        found: dict[str, Path] = {}
        left: list[tuple[str, object]] = list(self.settings.settings.items())
        while left:
            name, value = left.pop()
            if isinstance(value, dict):
                left += [(f"{name}.{key}", each) for key, each in value.items()]
            elif isinstance(value, list):
                left += [(f"{name}.{number}", each) for number, each in enumerate(value)]
            elif isinstance(value, str) and value.startswith("/"):
                found[name] = Path(value)
        return found

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """See Source. The program's `release` runs at the end, whatever happened before."""
        parent = request.parent.id if request.parent else None
        facts = {"revision": request.revision, "parent": parent, "is_frozen": request.is_frozen}
        data = SnapshotData(Consistency.NONE)
        try:
            answer = self._checked(self._ask("snapshot", **facts))
            data.consistency, data.files = answer.consistency, answer.files
            yield TakenSnapshot(partial(self._open, request, data, answer.disks))
        finally:
            is_kept = data.keeps_checkpoint
            with suppress(SourceError):  # the next `remove_all_except` removes what this leaves
                self._ask("release", revision=request.revision, keep=None, is_kept=is_kept)

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """See Source. The program's `release` runs without a revision, and with those to keep."""
        self._ask("release", revision=None, keep=sorted(revisions), is_kept=False)

    def _ask(self, verb: str, **facts: object) -> bytes:
        stdin = json.dumps({"settings": self.settings.settings, **facts}).encode()
        command, limit = (*self.settings.command, verb), self.settings.timeout
        return ask(command, f"source exec, {verb}", timeout_seconds=limit, stdin=stdin)

    def _checked(self, output: bytes) -> _Answer:
        """What the program answered to `snapshot`. Raises SourceError where it makes no sense."""
        try:
            return checked(_Answer, json.loads(output))
        except (ConfigError, RecursionError, ValueError) as error:
            why = f"source exec, snapshot: {self.settings.command[0]} answers: {error}"
            raise SourceError(why, _HINT) from error

    @contextmanager
    def _open(
        self, request: Request, data: SnapshotData, wanted: Mapping[str, _Disk]
    ) -> Iterator[SnapshotData]:
        """Open what the program named, and ask it what changed."""
        with ExitStack() as stack:
            for name, disk in wanted.items():
                data.disks[name] = self._image(disk, data, stack)
            for name, disk in wanted.items():
                if disk.changes_since and request.parent and name in request.parent.disks:
                    try:
                        image = self._changed(name, data.disks[name], disk.changes_since, request)
                    except (SourceError, ValueError) as error:
                        data.full_read_reasons[name] = str(error)
                    else:
                        data.disks[name] = image
            yield data

    def _image(self, disk: _Disk, data: SnapshotData, stack: ExitStack) -> Image:
        if isinstance(disk.read, Address):
            return stack.enter_context(open_image(disk.read))
        if disk.format != "raw":
            wanted = ImageFile(path=disk.read, format=disk.format)
            return stack.enter_context(open_image_file(wanted, self.settings.timeout))
        image = stack.enter_context(open_local(disk.read))
        data.final_checks.append(image.warnings)
        return image

    def _changed(self, name: str, image: Image, since: str, request: Request) -> Image:
        """Add a map of its changes to `image`.

        Raises SourceError or ValueError where the program gives none that can be used.
        """
        parent = request.parent.id if request.parent else ""
        if since != parent:
            raise ValueError(f"the program knows no changes since {parent}, but: {since!a:.200}")
        if not request.parent_has(name, image.size):
            raise ValueError(f"the parent's disk has another size than {image.size} bytes")
        facts = {"revision": request.revision, "parent": parent, "disk": name}
        changed = _Changed(image, self._ask("extents", **facts), parent)
        for _ in changed.extents():  # all of the map counts, or nothing of it
            pass
        return changed


class _Changed:
    """An image with a program's map of what changed, which may be as long as its text."""

    def __init__(self, image: Image, said: bytes, parent: str) -> None:
        self.size = image.size
        self.readinto = image.readinto
        self._said = said
        self._title = f"parent {parent}\n".encode()

    def extents(self) -> Iterator[Extent]:
        """See Image. Raises ValueError where the map is for another parent, or not whole."""
        lines, position = BytesIO(self._said), 0
        if (title := lines.readline(100)) != self._title:
            raise ValueError(f"the first line is {title!a}, not {self._title!a}")
        while line := lines.readline(100):
            match = _LINE.fullmatch(line)
            if not match or int(match[1]) != position:
                raise ValueError(f"at byte {position} the line {line!a} does not go on")
            yield Extent(position, int(match[2]), Kind(match[3].decode()))
            position += int(match[2])
        if position != self.size:
            raise ValueError(f"the map has {position} bytes, the disk {self.size}")
