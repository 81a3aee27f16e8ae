"""How far a command is: a bar on a terminal, lines elsewhere, events for programs; and warnings."""

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.machine import ext4
from tests.cli.runner import (
    MIB,
    SMALL,
    Backy,
    Result,
    Running,
    data,
    environment,
    image,
    leased,
    overwrite,
    wait_for,
)

DISK = data(1, 8 * MIB)
# The program, but with a display that does not wait a minute between two lines.
HASTY = """
import sys
from backy.cli import main, progress
progress._Lines.interval_seconds = 0.0
sys.exit(main())
"""


class Terminal:
    """A terminal of 100 columns that shows what is written to it."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.shown = ""

    def read(self) -> bool:
        """Take in what came; False at the end."""
        try:
            self.shown += os.read(self.ours, 65536).decode(errors="replace")
        except OSError:  # EIO: nobody has it open any more
            return False
        return True


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    os.close(terminal.ours)


def test_a_terminal_shows_a_bar_with_rate_and_time_left(
    backy: Backy, tmp_path: Path, terminal: Terminal
) -> None:
    # A pipe is read ahead by up to 24 MiB.
    backy.backup("vm1", image(tmp_path / "vm1.img", data(1, 32 * MIB)))
    command = backy.command("restore", "vm1", "-")
    env = environment(TERM="xterm", COLUMNS="100")
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=terminal.theirs
    ) as process:
        os.close(terminal.theirs)
        assert process.stdout
        # The reader sets the pace, so every step of the disk takes longer than the bar's refresh.
        while process.stdout.read(MIB):
            time.sleep(0.15)
        while terminal.read():
            pass
    assert "vm1" in terminal.shown
    assert re.search(r"━", terminal.shown)
    assert re.search(r"\d\.\d/32\.0 MiB", terminal.shown)
    assert re.search(r"\d [kM]i?B/s", terminal.shown)
    assert re.search(r"0:00:\d\d", terminal.shown)


def test_a_warning_is_readable_beside_the_bar(
    backy: Backy, tmp_path: Path, terminal: Terminal
) -> None:
    source = image(tmp_path / "vm1.img", DISK)
    backy.backup("vm1", source)
    overwrite(source, len(DISK), b"[bold]more")
    process = subprocess.Popen(
        backy.command("backup", "vm1"),
        env=environment(TERM="xterm", COLUMNS="200"),
        stdout=subprocess.DEVNULL,
        stderr=terminal.theirs,
    )
    os.close(terminal.theirs)
    while terminal.read():
        pass
    assert process.wait() == 0
    assert "vm1: warning: disk vda grew from 8.0 MiB to 8.0 MiB" in terminal.shown


@pytest.mark.parametrize("verb", ["backup", "restore", "verify"])
def test_elsewhere_lines_tell_share_rate_and_time_left(
    backy: Backy, tmp_path: Path, verb: str
) -> None:
    source = image(tmp_path / "vm1.img", DISK)
    backy.backup("vm1", source)
    more = [str(tmp_path / "new.img")] if verb == "restore" else []
    arguments = ["--base-dir", str(backy.base), verb, "vm1", *more]
    done = subprocess.run(
        [sys.executable, "-c", HASTY, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    line = r"vm1: \d+\.\d % of 8\.0 MiB, \d+\.\d [KMG]iB/s, [\w. ]+ left\n"
    assert re.fullmatch(rf"({line})+", done.stderr)
    assert "vm1: 100.0 % of 8.0 MiB" in done.stderr
    assert done.stdout.count("\n") == 1


def test_such_lines_come_once_a_minute() -> None:
    code = "from backy.cli import progress; print(progress._Lines.interval_seconds)"
    command = [sys.executable, "-c", code]
    assert subprocess.check_output(command, env=environment()) == b"60.0\n"


@pytest.fixture
def slow(backy: Backy, tmp_path: Path) -> Iterator[Running]:
    """A backup for programs that took more than a second before it read."""
    source = image(tmp_path / "vm1.img", DISK)
    with (
        leased(source) as lease,
        backy.started("backup", "vm1", "--source", source, "--json") as run,
    ):
        lease.wait()
        begun = time.monotonic()
        wait_for(lambda: time.monotonic() > begun + 1.1, "more than a second has passed")
        lease.release()
        yield run


def test_a_program_is_told_of_bytes_done_and_time_left(slow: Running) -> None:
    progress, *_, finished = slow.end().records()
    assert progress["event"] == "progress"
    assert progress["total"] == len(DISK)
    assert 0 < progress["done"] <= len(DISK)
    assert progress["rate"] > 0
    assert progress["eta_seconds"] >= 0
    assert finished["event"] == "finished"


@pytest.fixture
def no_reflink(tmp_path: Path) -> Iterator[Path]:
    """Where a source cannot be cloned, so that it may change while it is read."""
    with ext4(tmp_path, 32 * MIB) as folder:
        yield folder


@pytest.fixture
def two_sources(no_reflink: Path) -> list[Path]:
    return [image(no_reflink / name, SMALL[1]) for name in ("a.img", "b.img")]


def change_or_cut(path: Path, change: bytes | None) -> None:
    if change is None:
        os.truncate(path, 1000)
    else:
        overwrite(path, 5000, change)


CONFIGURATION = """
global: {{base-dir: {base}, socket: {base}/socket}}
schedules: {{default: {{hourly: {{interval: 1h, keep: 1}}}}}}
jobs:
  vm1:
    schedule: default
    source: {{type: file, disks: {{vda: {sources[0]}, vdb: {sources[1]}}}}}
    hooks: {{after-snapshot: {{command: [/bin/sh, -c, {wait}], timeout: 1m}}}}
"""


def backup_while(backy: Backy, sources: list[Path], change: bytes | None) -> Result:
    """Back up two disks, and change or cut the first one when it is open and the second is not.

    That is after the snapshot: there every disk is opened for a moment, to clone it.
    """
    taken, go, path = (backy.base.parent / name for name in ("taken", "go", "backy.yaml"))
    wait = f"'touch {taken}; until [ -e {go} ]; do sleep 0.01; done'"
    path.write_text(CONFIGURATION.format(base=backy.base, sources=sources, wait=wait))
    with backy.started("--config", path, "backup", "vm1", "--json") as running:
        wait_for(taken.exists, "the snapshot is taken")
        with leased(sources[1]) as lease:
            go.touch()
            lease.wait()
            change_or_cut(sources[0], change)
        return running.end()


def test_a_disk_that_changed_while_it_was_read_is_reported(
    backy: Backy, two_sources: list[Path]
) -> None:
    what = f"{two_sources[0]} changed while it was read; parts of it are older"
    warning, finished = backup_while(backy, two_sources, b"changed").records()
    assert warning == {"event": "warning", "message": what}
    assert finished["revision"]["warnings"] == [what]
    assert finished["revision"]["consistency"] == "none"
    assert backy.said_of("vm1", backy.revisions("vm1")[0])["warnings"] == [what]


def test_a_disk_that_was_cut_short_while_it_was_read_is_not_published(
    backy: Backy, two_sources: list[Path]
) -> None:
    result = backup_while(backy, two_sources, None)
    assert result.code == 4
    assert f"{two_sources[0]} ended at byte 1000 while it was read" in result.err
    assert backy.revisions("vm1") == []


def test_a_disk_that_nobody_changed_has_no_warning(backy: Backy, two_sources: list[Path]) -> None:
    backy.backup("vm1", two_sources[0])
    assert backy.quiet("backup", "vm1", "--json").last()["revision"]["warnings"] == []


def test_a_clone_cannot_change_while_it_is_read(plain: Backy) -> None:
    sources = [image(plain.base.parent / name, SMALL[1]) for name in ("a.img", "b.img")]
    options = [f"--source=vda={sources[0]}", f"--source=vdb={sources[1]}"]
    with leased(sources[1]) as lease, plain.started("backup", "vm1", *options, "--json") as running:
        lease.wait()
        change_or_cut(sources[0], b"changed")
        lease.release()
        finished = running.end().last()
    assert finished["revision"]["warnings"] == []
    assert plain.content("vm1") == SMALL[1]
