"""Small odd inputs, each once from the backup to both kinds of restore, in both stores.

Each line of INPUTS is a disk, or the surroundings of a command, that was right and must stay right.
The next one is a line. What must be refused is in REFUSED.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.runner import MIB, Backy, Result, data, environment
from tests.lab.devices import loop_device
from tests.lab.needs import absent, need, no_mounts
from tests.lab.reflink import unmount
from tests.nbd.servers import qemu_nbd, running

KIB = 1024
BLOCK = 64 * KIB
SOME = data(1, 3 * BLOCK)
SH = ("sh", "-c", 'ulimit -n 20; exec "$@"', "sh")
CRON = ("env", "-i", "SHELL=/bin/sh", "PATH=/usr/bin:/bin", "LOGNAME=root")
NO_HOME = ("env", "-u", "HOME", "LC_ALL=C")
ODD = "a b\n'\"$(id)`;&|*?[]{}~#%\\ \N{LATIN SMALL LETTER U WITH DIAERESIS}"


@dataclass(frozen=True)
class Sparse:
    """A disk of this size, which is a hole but for some bytes."""

    size: int
    parts: Mapping[int, bytes] = field(default_factory=dict)

    def content(self) -> bytes:
        """All of it."""
        content = bytearray(self.size)
        for offset, part in self.parts.items():
            content[offset : offset + len(part)] = part
        return bytes(content)

    def write(self, path: Path) -> None:
        """Make the file anew, with its holes."""
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(self.size)
            for offset, part in self.parts.items():
                file.seek(offset)
                file.write(part)


def full(content: bytes) -> Sparse:
    """A disk without a hole."""
    return Sparse(len(content), {0: content})


# How a file is offered as a source, or as a target: as itself, as a device, by a server.

Offer = Callable[[Path], AbstractContextManager[Path | str]]


@contextmanager
def device_4kn(path: Path) -> Iterator[Path]:
    """A disk whose sectors have 4 KiB."""
    need(no_mounts())
    command: list[str | Path] = ["losetup", "--find", "--show", "--sector-size", "4096", path]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    device = Path(made.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextmanager
def nbd_by_ipv6(path: Path) -> Iterator[str]:
    """The URI of an export."""
    need(absent("qemu-nbd"))
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")
    with closing(listener), running(listener, *qemu_nbd("--format=raw", path)):
        yield f"nbd://[::1]:{listener.getsockname()[1]}"


# What happens to a base directory.


@contextmanager
def noexec(base: Path) -> Iterator[None]:
    """Its file system runs no programs."""
    need(no_mounts())
    base.mkdir()
    subprocess.run(["mount", "--bind", base, base], check=True)
    try:
        options = "remount,bind,noexec,nosuid,nodev"
        subprocess.run(["mount", "-o", options, base], check=True)
        yield
    finally:
        unmount(base)


def copied_without_modes(base: Path) -> None:
    """Somebody copies it, as scp and most file managers do."""
    aside = base.with_name("aside")
    base.rename(aside)
    subprocess.run(["cp", "-r", "--no-preserve=all", aside, base], check=True)


def copied_sparse(base: Path) -> None:
    """Somebody copies it with rsync or cp, as docs/reliability.md says."""
    aside = base.with_name("aside")
    base.rename(aside)
    subprocess.run(["cp", "-a", "--sparse=always", aside, base], check=True)


@dataclass(frozen=True)
class Input:
    """The disk at each backup, and what is odd about it or around it."""

    disks: Sequence[Sparse] = (full(SOME),)
    image: str = "vm1.img"
    base: str = "backups"
    job: str = "vm1"
    target: str = "target"
    under: Sequence[str] = ()
    source: Offer = nullcontext
    restored: Offer = nullcontext
    around: Callable[[Path], AbstractContextManager[None]] = lambda _: nullcontext()
    afterwards: Callable[[Path], None] = lambda _: None


INPUTS = {
    "one-byte": Input([full(b"x")]),
    "one-byte-less-than-a-sector": Input([full(data(1, 511))]),
    "one-byte-less-than-a-block": Input([full(data(1, BLOCK - 1))]),
    "one-byte-more-than-a-block": Input([full(data(1, BLOCK + 1))]),
    "all-zeroes": Input([full(bytes(2 * BLOCK + 5))]),
    "one-hole": Input([Sparse(40 * MIB + 513)]),
    "a-hole-at-the-start": Input([Sparse(4 * MIB, {4 * MIB - 5: b"12345"})]),
    "a-hole-at-the-end": Input([Sparse(4 * MIB + 1, {0: b"12345"})]),
    "a-hole-that-ends-in-a-block": Input([Sparse(MIB, {0: SOME, 5 * BLOCK + 4096: SOME})]),
    "a-hole-becomes-data": Input([Sparse(MIB), full(data(2, MIB))]),
    "data-becomes-a-hole": Input([full(data(2, MIB)), Sparse(MIB, {4096: b"x"})]),
    "nothing-changes": Input([full(SOME)] * 3),
    "grown": Input([full(SOME), full(SOME + data(2, BLOCK + 7))]),
    "shrunk": Input([full(SOME), full(SOME[: BLOCK + 7])]),
    "shrunk-and-regrown": Input(
        [full(SOME), full(SOME[: BLOCK + 7]), Sparse(3 * BLOCK, {0: SOME[: BLOCK + 7]})]
    ),
    "shrunk-to-a-byte-and-regrown": Input([full(SOME), full(SOME[:1]), full(SOME)]),
    "from-a-device": Input(source=loop_device),
    "from-a-device-of-odd-sectors": Input([full(data(1, 7 * 512))], source=loop_device),
    "from-a-4Kn-device": Input([full(data(1, 3 * BLOCK + 4096))], source=device_4kn),
    "to-a-device": Input(restored=loop_device),
    "to-a-device-an-odd-disk": Input([full(data(1, 2 * BLOCK + 513))], restored=loop_device),
    "to-a-4Kn-device": Input(restored=device_4kn),
    "to-a-4Kn-device-an-odd-disk": Input([full(data(1, 2 * BLOCK + 513))], restored=device_4kn),
    "to-a-4Kn-device-with-holes": Input([Sparse(MIB, {BLOCK: b"x"})], restored=device_4kn),
    "nbd-by-IPv6": Input(source=nbd_by_ipv6),
    "an-odd-image": Input(image=ODD.replace("\n", "")),
    "an-image-like-an-option": Input(image="-rf"),
    "an-image-with-an-equals-sign": Input(image="vda=1.img"),
    "an-odd-base": Input(base=ODD),
    "a-base-that-is-not-UTF-8": Input(base="b\udcff"),
    "an-odd-target": Input(target=ODD),
    "an-odd-job": Input(job="1@a+b.c-d_e"),
    "cron": Input(under=CRON),
    "no-home-and-no-locale": Input(under=NO_HOME),
    "20-open-files": Input([Sparse(4 * MIB, {0: SOME, 2 * MIB: SOME})], under=SH),
    "noexec": Input(around=noexec),
    "copied-without-modes": Input(afterwards=copied_without_modes),
    "copied-sparse": Input([Sparse(MIB, {BLOCK: b"x"})], afterwards=copied_sparse),
}


@dataclass(frozen=True)
class Bench:
    """One input at work: a base directory of one store, a folder for images and targets."""

    backy: Backy
    folder: Path
    case: Input

    def run(self, *arguments: str | Path) -> Result:
        """Run backy in the surroundings of the case; it has to succeed."""
        result = self.backy.run(*arguments, under=self.case.under)
        assert result.code == 0, result
        return result

    def back_up(self, disk: Sparse) -> None:
        """Have the disk in this state, and back it up."""
        path = self.folder / self.case.image
        disk.write(path)
        with self.case.source(path) as source:
            self.run(*self._backup(source), "--store", self.backy.store, "--block-size", "64KiB")

    def _backup(self, source: Path | str) -> list[str | Path]:
        job = self.case.job
        if isinstance(source, Path):
            return ["backup", job, "--source", f"vda={source}"]
        schedules = {"daily": {"daily": {"interval": "1d", "keep": 9}}}
        jobs = {job: {"source": {"type": "nbd", "disks": {"vda": source}}, "schedule": "daily"}}
        settings = {"schedules": schedules, "jobs": jobs}
        (self.folder / "backy.yaml").write_text(json.dumps(settings))
        return ["--config", self.folder / "backy.yaml", "backup", job]

    @contextmanager
    def target(self, length: int) -> Iterator[Path]:
        """A target: what is not there yet, or a device that is as long as such a disk needs."""
        path = self.folder / self.case.target
        path.unlink(missing_ok=True)
        if self.case.restored is not nullcontext:
            path.write_bytes(b"old" * -(-length // 4096 * 4096 // 3))
            os.truncate(path, -(-length // 4096) * 4096)
        with self.case.restored(path) as target:
            assert isinstance(target, Path)
            yield target

    def restore(self, revision: str, target: Path) -> None:
        """As somebody does who has backy."""
        self.run("restore", self.case.job, target, "-r", revision)

    def restore_by_script(self, revision: str, target: Path) -> None:
        """As somebody does who has not."""
        script = self.backy.base / self.case.job / "restore.sh"
        command: list[str | Path] = [*self.case.under, "sh", script, revision, "vda", target]
        done = subprocess.run(command, env=environment(), capture_output=True, check=False)
        assert done.returncode == 0, done


@pytest.mark.parametrize("name", INPUTS)
def test_a_small_input_comes_back(either: Backy, tmp_path: Path, name: str) -> None:
    case = INPUTS[name]
    backy = Backy(either.base.parent / case.base, either.store)
    bench = Bench(backy, tmp_path, case)
    with case.around(backy.base):
        for disk in case.disks:
            bench.back_up(disk)
        case.afterwards(backy.base)
        bench.run("verify", case.job)
        revisions = backy.revisions(case.job)
        for revision, disk in zip(revisions, case.disks, strict=True):
            for restore in (bench.restore, bench.restore_by_script):
                with bench.target(disk.size) as target:
                    restore(revision, target)
                    assert target.read_bytes()[: disk.size] == disk.content(), restore


REFUSED = {
    "a-target-a-sector-short": (loop_device, 512),
    "a-target-a-large-sector-short": (device_4kn, 4096),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_target_that_is_a_little_short_is_left_alone(
    either: Backy, tmp_path: Path, name: str
) -> None:
    offer, shortage = REFUSED[name]
    bench = Bench(either, tmp_path, Input())
    bench.back_up(full(SOME))
    old = data(9, len(SOME) - shortage)
    (tmp_path / "device").write_bytes(old)
    [revision] = either.revisions("vm1")
    with offer(tmp_path / "device") as device:
        either.refuses(10, "restore", "vm1", device)
        with pytest.raises(AssertionError, match="sh: "):
            bench.restore_by_script(revision, Path(device))
        assert Path(device).read_bytes() == old


@pytest.mark.parametrize("name", [ODD, "i\udcff.img", "\x1b[2J"], ids=ascii)
def test_an_image_whose_name_nobody_could_read_is_refused(
    either: Backy, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(SOME)
    either.refuses(2, "backup", "vm1", "--source", tmp_path / name)


def test_an_empty_disk_is_refused(either: Backy, tmp_path: Path) -> None:
    (tmp_path / "vm1.img").touch()
    said = either.refuses(4, "backup", "vm1", "--source", tmp_path / "vm1.img")
    assert "empty" in said.message
    assert not (either.base / "vm1" / "repository.json").exists()
