"""Source "exec": a program of the administrator that takes snapshots and tells what changed.

The protocol is in docs/sources/exec.md. The program is trusted as much as backy itself. Its output
is checked nevertheless, because a wrong map of changes would silently lose data.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import Base64Bytes, BeforeValidator, Field

from backy.clients.local_file import open_local
from backy.clients.program import output_of
from backy.clients.qemu_nbd import ImageFile, open_image_file
from backy.config.settings import DiskName, Seconds, checking
from backy.errors import ConfigError, SourceError
from backy.image.image import Image
from backy.model.extent import Extent, Kind
from backy.model.revision import Consistency
from backy.nbd.remote_image import open_image
from backy.nbd.uri import Address, parse_uri
from backy.sources import Request, SourceSettings, TakenSnapshot, checked
from backy.sources.snapshot_data import MappedImage, SnapshotData

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
            if isinstance(value, (dict, list)):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                queue += [(f"{name}.{key}", item) for key, item in items]
            elif isinstance(value, str) and value.startswith("/"):
                paths[name] = Path(value)
        return paths

    def look(self) -> Collection[str]:
        """See Source. Asks nobody: the program has no verb that takes no snapshot."""
        return ()

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        """See Source. The program always runs with `release` at the end."""
        parent, data = request.parent.id if request.parent else None, SnapshotData(request)
        try:
            facts = {"revision": request.revision, "parent": parent, "is_frozen": request.is_frozen}
            output = self._call("snapshot", data.early_warnings, **facts)
            answer = self._parsed(output, data.early_warnings)
            data.consistency, data.files = answer.consistency, answer.files
            yield data.taken(partial(self._open, answer.disks))
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

    def _open(self, wanted: Mapping[str, _Disk], data: SnapshotData) -> None:
        """Open the disks that the program named, and ask it what changed."""
        for name, disk in wanted.items():
            if isinstance(disk.read, Address):
                data.open(name, open_image(disk.read))
            elif disk.format != "raw":
                image = ImageFile(path=disk.read, format=disk.format)
                data.open(name, open_image_file(image, self.settings.timeout))
            else:
                data.final_checks.append(data.open(name, open_local(disk.read)).warnings)
        for name, disk in wanted.items():
            parent = data.request.parent_of(name)
            if disk.changes_since and parent:
                try:
                    data.disks[name] = self._changed(name, disk.changes_since, parent, data)
                except (SourceError, ValueError) as error:
                    data.full_read_reasons[name] = str(error)

    def _changed(self, name: str, since: str, parent: str, data: SnapshotData) -> Image:
        """The image of a disk with the program's map of changes.

        Raises SourceError or ValueError where the program has no map that can be used.
        """
        image = data.disks[name]
        if since != parent:
            raise ValueError(f"the program knows no changes since {parent}, but: {since!a:.200}")
        if not data.request.parent_has(name, image.size):
            raise ValueError(f"the disk has {image.size} bytes, the parent's has another size")
        arguments = {"revision": data.request.revision, "parent": parent, "disk": name}
        text = self._call("extents", data.early_warnings, **arguments)
        extents = partial(_parsed_map, text, parent, image.size)
        for _ in extents():  # a map with any error in it is not used
            pass
        return MappedImage(image, image.size, extents)


def _parsed_map(text: bytes, parent: str, size: int) -> Iterator[Extent]:
    """The extents in a program's map of what changed, which is kept as text, to save memory.

    Raises ValueError where the map is for another parent, or incomplete.
    """
    lines, position, expected = BytesIO(text), 0, f"parent {parent}\n".encode()
    if (title := lines.readline(100)) != expected:
        raise ValueError(f"the first line is {title!a}, not {expected!a}")
    while line := lines.readline(100):
        match = _LINE.fullmatch(line)
        if not match or int(match[1]) != position:
            raise ValueError(f"at byte {position} the line {line!a} does not continue the map")
        yield Extent(position, int(match[2]), Kind(match[3].decode()))
        position += int(match[2])
    if position != size:
        raise ValueError(f"the map has {position} bytes, the disk {size}")
