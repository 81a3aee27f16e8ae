"""Each program in contrib/sources gives deltas that restore to the right bytes, and no others.

Here is what the tests of all of them use; the programs have files of their own.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backy.image.image import Image
from backy.model.extent import Kind
from backy.model.revision import Consistency, Disk, Revision, id_for
from backy.sources import Request
from backy.sources.exec import ExecSource
from tests.snapshots import content_of, opened

SOURCES = Path(__file__).parents[2] / "contrib" / "sources"
PROGRAMS = ("btrfs-image", "lvm-thin", "postgresql", "vmware-cbt", "zfs-zvol")
BEGIN = datetime(2026, 11, 23, tzinfo=UTC)


def revision(number: int, sizes: Mapping[str, int]) -> Revision:
    """The revision of this number, with disks of these sizes."""
    time = BEGIN + timedelta(minutes=number)
    return Revision(
        id=id_for(time, f"x{number:03}"),
        time=time,
        parent=None,
        seconds=0,
        consistency=Consistency.CRASH,
        disks={name: Disk(size, 65536, "", 0, 0, 0) for name, size in sizes.items()},
    )


@dataclass
class Taken:
    """What a backup would have stored; `data` and `same` are bytes of each disk."""

    revision: Revision
    contents: dict[str, bytes] = field(default_factory=dict)
    data: dict[str, int] = field(default_factory=dict)
    same: dict[str, int] = field(default_factory=dict)
    full_read_reasons: dict[str, str] = field(default_factory=dict)
    consistency: Consistency = Consistency.NONE


class Chain:
    """Backups with one program, one after the other, as the verb makes them."""

    def __init__(self, program: str, **settings: object) -> None:
        # As root backy runs no program from a checkout that belongs to somebody else.
        command = ["/usr/bin/env", "python3", "-B", str(SOURCES / program)]
        self.source = ExecSource(command=command, settings=settings, timeout="60s")
        self.taken: list[Taken] = []

    def backup(self, *, is_kept: bool = True, is_frozen: bool = False) -> Taken:
        """The next one, upon the one before."""
        parent = self.taken[-1] if self.taken else None
        self.source.remove_all_except([parent.revision.id] if parent else [])
        taken = self.take(parent, revision(len(self.taken), {}), is_kept, is_frozen)
        if is_kept:
            self.source.remove_all_except([taken.revision.id])
            self.taken.append(taken)
        return taken

    def take(
        self, parent: Taken | None, new: Revision, is_kept: bool = True, is_frozen: bool = False
    ) -> Taken:
        request = Request(new.id, parent.revision if parent else None, is_frozen)
        with opened(self.source, request) as snapshot:
            taken = Taken(
                new,
                full_read_reasons=dict(snapshot.full_read_reasons),
                consistency=snapshot.consistency,
            )
            for name, image in snapshot.disks.items():
                before = parent.contents.get(name, b"") if parent else b""
                taken.contents[name] = content_of(image, before)
                taken.data[name] = length_of(image, Kind.DATA)
                taken.same[name] = length_of(image, Kind.SAME)
            if is_kept:
                snapshot.keep_checkpoint()
        sizes = {name: len(content) for name, content in taken.contents.items()}
        taken.revision = replace(new, disks=revision(0, sizes).disks)
        return taken


def length_of(image: Image, kind: Kind) -> int:
    return sum(each.length for each in image.extents() if each.kind is kind)


def say(program: str, verb: str, **request: object) -> subprocess.CompletedProcess[str]:
    """Run a program as the source does."""
    return subprocess.run(
        [sys.executable, "-B", str(SOURCES / program), verb],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )


def recorder(folder: Path, name: str, script: str) -> None:
    """Put a program of that name into `folder`, which the test has in its PATH."""
    path = folder / name
    path.write_text(f"#!/bin/sh\nset -eu\n{script}")
    path.chmod(0o755)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_without_its_settings_says_what_is_missing(program: str) -> None:
    for verb in ("snapshot", "extents", "release"):
        asked: dict[str, object] = {
            "revision": "20261123T000000Z-x000",
            "parent": None,
            "disk": "vda",
            "keep": [],
        }
        ended = say(program, verb, settings={}, is_frozen=False, is_kept=False, **asked)
        assert ended.returncode == 1
        assert " is missing" in ended.stderr
        assert ended.stdout == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_verb_is_refused(program: str) -> None:
    ended = say(program, "explode", settings={})
    assert ended.returncode == 1
    assert ended.stderr == "there is no verb 'explode'\n"


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_can_be_started_as_its_own_text_says(program: str) -> None:
    path = SOURCES / program
    assert path.stat().st_mode & 0o111
    assert f"command: [/usr/local/lib/backy/{program}]" in path.read_text()


def test_all_programs_are_tested() -> None:
    there = {path.name for path in SOURCES.iterdir() if path.is_file()}
    assert there == {*PROGRAMS, "backy_exec.py"}
