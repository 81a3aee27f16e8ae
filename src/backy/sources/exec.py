"""Source "exec": a program of the administrator that takes snapshots and tells what changed.

The protocol is in docs/sources/exec.md. The program is trusted as much as backy itself. Its output
is checked nevertheless, because a wrong map of changes would silently lose data.
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
from backy.clients.program import output_of
from backy.config.settings import DiskName, Seconds, checking
from backy.errors import ConfigError, SourceError
from backy.image.image import Image
from backy.model.extent import Extent, Kind
from backy.model.revision import Consistency
from backy.nbd.remote_image import open_image
from backy.nbd.uri import Address, parse_uri
from backy.sources import Request, SourceSettings, TakenSnapshot, checked
from backy.sources.snapshot_data import SnapshotData

_HINT = "What a program has to print is in docs/sources/exec.md."
_LINE = re.compile(rb"([0-9]{1,19}) ([1-9][0-9]{0,18}) (data|zero|same)\n")


class ExecSettings(SourceSettings):
    """See docs/sources/exec.md. `settings` are passed to the program unchanged."""

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
        """See Source. Gives every path: only the program knows which of them are disks."""
        paths: dict[str, Path] = {}
        queue: list[tuple[str, object]] = list(self.settings.settings.items())
        while queue:
            name, value = queue.pop()
            if isinstance(value, dict):
                queue += [(f"{name}.{key}", item) for key, item in value.items()]
            elif isinstance(value, list):
                queue += [(f"{name}.{number}", item) for number, item in enumerate(value)]
            elif isinstance(value, str) and value.startswith("/"):
                paths[name] = Path(value)
        return paths

    def look(self) -> Collection[str]:
        """See Source. Asks nobody: the program has no verb that takes no snapshot."""
        return ()

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """See Source. The program always runs with `release` at the end."""
        parent = request.parent.id if request.parent else None
        data = SnapshotData(Consistency.NONE)
        try:
            facts = {"revision": request.revision, "parent": parent, "is_frozen": request.is_frozen}
            output = self._call("snapshot", data.early_warnings, **facts)
            answer = self._parsed(output, data.early_warnings)
            data.consistency, data.files = answer.consistency, answer.files
            yield TakenSnapshot(partial(self._open, request, data, answer.disks))
        finally:
            is_kept = data.keeps_checkpoint
            with suppress(SourceError):  # best effort: the next `remove_all_except` retries
                self._call("release", [], revision=request.revision, keep=None, is_kept=is_kept)

    def remove_all_except(self, revisions: Collection[str]) -> None:
        """See Source. The program runs with `release` for no revision in particular."""
        self._call("release", [], revision=None, keep=sorted(revisions), is_kept=False)

    def _call(self, verb: str, warnings: list[str], **arguments: object) -> bytes:
        """Run the program with a verb, and give its output. Adds to `warnings`."""
        stdin = json.dumps({"settings": self.settings.settings, **arguments}).encode()
        command, limit = (*self.settings.command, verb), self.settings.timeout
        title = f"source exec, {verb}"
        return output_of(command, title, timeout_seconds=limit, stdin=stdin, warnings=warnings)

    def _parsed(self, output: bytes, warnings: Collection[str]) -> _Answer:
        """The answer to `snapshot`. Raises SourceError where it is not as documented."""
        try:
            return checked(_Answer, json.loads(output))
        except (ConfigError, RecursionError, ValueError) as error:
            why = f"source exec, snapshot: {self.settings.command[0]} answers: {error}"
            raise SourceError("; ".join([why, *warnings]), _HINT) from error

    @contextmanager
    def _open(
        self, request: Request, data: SnapshotData, wanted: Mapping[str, _Disk]
    ) -> Iterator[SnapshotData]:
        """Open the disks that the program named, and ask it what changed."""
        with ExitStack() as stack:
            for name, disk in wanted.items():
                data.disks[name] = self._image(disk, data, stack)
            for name, disk in wanted.items():
                if disk.changes_since and request.parent and name in request.parent.disks:
                    try:
                        image = self._changed(name, disk.changes_since, request, data)
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

    def _changed(self, name: str, since: str, request: Request, data: SnapshotData) -> Image:
        """The image of a disk with the program's map of changes.

        Raises SourceError or ValueError where the program has no map that can be used.
        """
        parent, image = request.parent.id if request.parent else "", data.disks[name]
        if since != parent:
            raise ValueError(f"the program knows no changes since {parent}, but: {since!a:.200}")
        if not request.parent_has(name, image.size):
            raise ValueError(f"the disk has {image.size} bytes, the parent's has another size")
        arguments = {"revision": request.revision, "parent": parent, "disk": name}
        text = self._call("extents", data.early_warnings, **arguments)
        changed = _Changed(image, text, parent)
        for _ in changed.extents():  # a map with any error in it is not used
            pass
        return changed


class _Changed:
    """An image with a program's map of what changed. The map is kept as text, to save memory."""

    def __init__(self, image: Image, text: bytes, parent: str) -> None:
        self.size = image.size
        self.readinto = image.readinto
        self._text = text
        self._title = f"parent {parent}\n".encode()

    def extents(self) -> Iterator[Extent]:
        """See Image. Raises ValueError where the map is for another parent, or incomplete."""
        lines, position = BytesIO(self._text), 0
        if (title := lines.readline(100)) != self._title:
            raise ValueError(f"the first line is {title!a}, not {self._title!a}")
        while line := lines.readline(100):
            match = _LINE.fullmatch(line)
            if not match or int(match[1]) != position:
                raise ValueError(f"at byte {position} the line {line!a} does not continue the map")
            yield Extent(position, int(match[2]), Kind(match[3].decode()))
            position += int(match[2])
        if position != self.size:
            raise ValueError(f"the map has {position} bytes, the disk {self.size}")
