"""What a program did with names of files, as the kernel saw it: strace(1)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_UNFINISHED = " <unfinished ...>"  # the rest follows in another line of the same process
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_LINE = re.compile(r"\d+ +(?P<call>\w+)\((?P<arguments>.*)")
# A folder and a name in it, as "-y" shows them: AT_FDCWD</home>, "a/b" or 5</home/a>, "b".
_RELATIVE = re.compile(r'(AT_FDCWD|\d+)<((?:[^>\\]|\\.)*)>, "((?:[^"\\]|\\.)*)"')
_FIRST = re.compile(r'"((?:[^"\\]|\\.)*)"')
_NOT_FOLLOWED = ("O_NOFOLLOW", "AT_SYMLINK_NOFOLLOW", "AT_EMPTY_PATH", "O_EXCL", "O_TMPFILE")
_FOLLOWS = {"openat", "newfstatat", "statx", "fchmodat", "fchownat", "faccessat2", "utimensat"}


@dataclass(frozen=True, slots=True)
class Touch:
    """One use of a name: by which call, relative to which folder, with everything that was said."""

    call: str
    folder: str  # "" where the name alone is the whole path
    name: str
    line: str

    @property
    def path(self) -> str:
        """The whole path."""
        return os.path.normpath(Path(self.folder, self.name))

    @property
    def is_by_descriptor(self) -> bool:
        """Whether neither a link nor an exchanged folder can lead this call to another place."""
        if not self.folder or self.name.startswith("/"):
            return False
        if "/" in self.name:
            return False
        is_itself = self.name in {"", ".", ".."}
        return (
            is_itself
            or self.call not in _FOLLOWS
            or any(word in self.line for word in _NOT_FOLLOWED)
        )


def traced(log: Path) -> list[str]:
    """What to put before a command, so that its uses of names and its children's are logged."""
    return [
        "strace",
        "-f",
        "-y",
        "--seccomp-bpf",
        "-s",
        "4096",
        "-e",
        "trace=%file",
        "-o",
        str(log),
    ]


def _whole_lines(lines: Iterable[str]) -> Iterator[str]:
    begun: dict[str, str] = {}
    for line in lines:
        if line.endswith(_UNFINISHED):
            begun[line.split()[0]] = line.removesuffix(_UNFINISHED)
        elif rest := _RESUMED.match(line):
            yield begun.pop(rest[1], rest[1]) + rest[2]
        else:
            yield line
    yield from begun.values()


def touches(log: Path) -> Iterator[Touch]:
    """All uses of names in a log, in their order."""
    for line in _whole_lines(log.read_text(errors="replace").splitlines()):
        if found := _LINE.match(line):
            call, arguments = found["call"], found["arguments"]
            relative = list(_RELATIVE.finditer(arguments))
            for each in relative:
                here = "" if each[1] == "AT_FDCWD" else each[2]
                name = each[3] if here or each[3].startswith("/") else f"{each[2]}/{each[3]}"
                yield Touch(call, here, name, line)
            if not relative and call != "execve" and (only := _FIRST.match(arguments)):
                yield Touch(call, "", only[1], line)
