"""restore.sh gets every disk back, in any POSIX shell, without backy and without Python."""

import os
import random
import shutil
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
import zstandard

from tests.lab.devices import loop_device, needs_loop_devices
from tests.lab.dispositions import WITH_DEFAULTS
from tests.lab.handmade import MIB, PAGE, RESTORE_SH, Handmade, compressed, digest_of, text_of
from tests.lab.needs import absent, need
from tests.lab.volumes import file_system
from tests.lab.watchdog import ends

OLD, REV = "20261122T004938Z-a1b2", "20261123T004938Z-x7k2"
BLOCK = 4096
# All that the script may use of a system with GNU tools. Busybox comes with all of its applets.
GNU = {"sed", "xargs", "zstd"} | {"basename", "cat", "cp", "dd", "dirname", "ls", "readlink"}
GNU |= {"head", "sort", "stat", "tail", "wc"}


@dataclass(frozen=True, slots=True)
class Machine:
    """One shell, and a PATH with no programs but those linked into `tools`."""

    name: str
    tools: Path

    def install(self, program: str) -> None:
        """Make an installed program available."""
        need(absent(program))
        (self.tools / program).symlink_to(Path(str(shutil.which(program))).resolve())

    def run(
        self, repository: Handmade, *arguments: str | Path, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            self.command(repository, *arguments),
            cwd=cwd or repository.path.parent,
            env=self.environment,
            capture_output=True,
            check=False,
        )

    def restore(
        self, repository: Handmade, target: Path | str, revision: str = REV, disk: str = "vda"
    ) -> str:
        """Restore, and return what was said about it."""
        result = self.run(repository, revision, disk, target)
        assert result.returncode == 0, result.stderr.decode()
        assert result.stdout == b""
        return result.stderr.decode()

    def refuse(
        self, repository: Handmade, target: Path | str, revision: str = REV, disk: str = "vda"
    ) -> str:
        """Restore in vain, and return what was said about it."""
        result = self.run(repository, revision, disk, target)
        assert result.returncode == 1, result.stderr.decode()
        return result.stderr.decode()

    def command(self, repository: Handmade, *arguments: str | Path) -> list[str | Path]:
        return [self.tools / "sh", repository.path / "restore.sh", *arguments]

    @property
    def environment(self) -> dict[str, str]:
        # An operator may have set these two, and they must not get in the way.
        return {"PATH": str(self.tools), "LC_ALL": "C.UTF-8", "CDPATH": "/tmp:/"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Bash, which has the same tools as dash, runs each test that tries nothing in many kinds."""
    if "machine" in metafunc.fixturenames:
        has_kinds = any(mark.name == "parametrize" for mark in metafunc.definition.iter_markers())
        shells = ["dash", "busybox"] if has_kinds else ["dash", "bash", "busybox"]
        metafunc.parametrize("machine", shells, indirect=True)


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    machine = Machine(request.param, tmp_path / "tools")
    machine.tools.mkdir()
    if machine.name == "busybox":
        machine.install("busybox")
        subprocess.run([machine.tools / "busybox", "--install", "-s", machine.tools], check=True)
        machine.install("zstd")
    else:
        machine.install(machine.name)
        (machine.tools / "sh").symlink_to(machine.name)
        for program in GNU:
            machine.install(program)
    return machine


def handmade(
    folder: Path,
    store: Literal["chunks", "images"],
    block_size: int = BLOCK,
    version: Literal[1, 2] = 2,
) -> Handmade:
    """An empty repository, at a path that a careless script would split."""
    repository = Handmade(folder / "a server" / "vm 1", store, block_size, version)
    repository.make()
    return repository


def content(blocks: int, tail: int = 0, seed: int = 0) -> bytes:
    """Data of so many blocks and bytes: random, zero and repeated blocks in turn."""
    source = random.Random(seed)
    same = source.randbytes(BLOCK)
    kinds: list[Callable[[], bytes]] = [lambda: source.randbytes(BLOCK), lambda: bytes(BLOCK)]
    kinds.append(lambda: same)
    return b"".join(kinds[n % 3]() for n in range(blocks)) + source.randbytes(tail)


VDA, VDB, OLD_VDA = content(60, 1000), content(3, seed=1), content(20, seed=2)


@pytest.fixture(params=["chunks", "images"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Handmade:
    repository = handmade(tmp_path, request.param)
    repository.add(REV, {"vda": VDA, "vdb": VDB}, tags=["daily", "manual:before upgrade"])
    repository.add(OLD, {"vda": OLD_VDA}, tags=[], trust="distrusted")
    return repository


@pytest.fixture
def chunked(tmp_path: Path) -> Handmade:
    repository = handmade(tmp_path, "chunks")
    repository.add(REV, {"vda": VDA, "vdb": VDB})
    return repository


@pytest.fixture
def format_1(tmp_path: Path) -> Handmade:
    """The same in format 1, where an index lists blocks."""
    repository = handmade(tmp_path, "chunks", version=1)
    repository.add(REV, {"vda": VDA, "vdb": VDB})
    return repository


@pytest.fixture(params=["format-1", "format-2"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Handmade:
    """The same in each of the two formats."""
    repository = handmade(tmp_path, "chunks", version=1 if request.param == "format-1" else 2)
    repository.add(REV, {"vda": VDA, "vdb": VDB})
    return repository


def flip_a_bit(chunk: Path) -> None:
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)


# The list.


def test_without_arguments_it_lists_revisions_and_disks_with_the_oldest_first(
    machine: Machine, repository: Handmade
) -> None:
    result = machine.run(repository)
    assert result.stderr.decode() == ""
    assert result.stdout.decode().splitlines() == [
        f"{OLD}  2026-11-22T00:49:38Z  distrusted",
        "    vda  80.0 KiB  81920 bytes",
        f"{REV}  2026-11-23T00:49:38Z  trusted  daily, manual:before upgrade",
        "    vda  240.9 KiB  246760 bytes",
        "    vdb  12.0 KiB  12288 bytes",
    ]
    assert result.returncode == 0


def test_an_empty_repository_has_an_empty_list(machine: Machine, tmp_path: Path) -> None:
    result = machine.run(handmade(tmp_path, "chunks"))
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_a_backup_that_never_finished_is_no_revision(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    draft = repository.path / "revisions" / ".20261124T004938Z-n2n2"
    draft.mkdir()
    (draft / "revision.json").write_text("{}")
    assert b"n2n2" not in machine.run(repository).stdout
    assert REV in machine.restore(repository, tmp_path / "new", revision="latest")


# The arguments.


@pytest.mark.parametrize("arguments", [["-h"], ["--help"]])
def test_help_goes_to_stdout(machine: Machine, repository: Handmade, arguments: list[str]) -> None:
    result = machine.run(repository, *arguments)
    assert result.returncode == 0
    assert result.stdout.startswith(b"usage: ./restore.sh")


@pytest.mark.parametrize(
    "arguments",
    [["latest"], ["latest", "vda"], ["latest", "vda", "x", "y"], ["", "vda", "x"], ["--list"]],
)
def test_wrong_usage_ends_with_status_2_and_the_right_usage(
    machine: Machine, repository: Handmade, arguments: list[str]
) -> None:
    result = machine.run(repository, *arguments)
    assert result.returncode == 2
    assert result.stdout == b""
    assert result.stderr.startswith(b"usage: ./restore.sh")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(REV, VDA, id="whole-id"),
        pytest.param(OLD, OLD_VDA, id="an-older-one"),
        pytest.param("latest", VDA, id="latest"),
        pytest.param("20261123", VDA, id="beginning-that-is-unique"),
    ],
)
def test_a_revision_has_several_names(
    machine: Machine, repository: Handmade, tmp_path: Path, name: str, expected: bytes
) -> None:
    machine.restore(repository, tmp_path / "new", revision=name)
    assert (tmp_path / "new").read_bytes() == expected


def test_a_beginning_that_two_revisions_share_is_refused_and_both_are_named(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    said = machine.refuse(repository, tmp_path / "new", revision="202611")
    assert "more than one revision begins with 202611" in said
    assert OLD in said
    assert REV in said


@pytest.mark.parametrize("name", ["20261124", "vda", "*", "../revisions", REV + "x"])
def test_an_unknown_revision_is_refused(
    machine: Machine, repository: Handmade, tmp_path: Path, name: str
) -> None:
    said = machine.refuse(repository, tmp_path / "new", revision=name)
    assert f"there is no revision {name}" in said


@pytest.mark.parametrize("name", ["vdc", "vd.", "", "../vda", "vd*", "-n"])
def test_an_unknown_disk_is_refused(
    machine: Machine, repository: Handmade, tmp_path: Path, name: str
) -> None:
    said = machine.refuse(repository, tmp_path / "new", disk=name)
    assert "there is no disk" in said or "is not the name of a disk" in said
    assert not (tmp_path / "new").exists()


def test_a_name_with_a_dot_means_only_itself(machine: Machine, tmp_path: Path) -> None:
    repository = handmade(tmp_path, "chunks")
    repository.add(REV, {"vdxa": VDA, "vd.a": VDB, "vd.a.1": OLD_VDA})
    machine.restore(repository, tmp_path / "new", disk="vd.a")
    assert (tmp_path / "new").read_bytes() == VDB


def test_a_distrusted_revision_is_restored_with_a_warning(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    assert "is distrusted" in machine.restore(repository, tmp_path / "new", revision=OLD)
    assert "is distrusted" not in machine.restore(repository, tmp_path / "new")


# What a restore gives.


def test_each_disk_is_restored_and_reported_in_one_line(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    machine.install("b3sum")
    for disk, data, human in (("vda", VDA, "240.9 KiB"), ("vdb", VDB, "12.0 KiB")):
        target = tmp_path / disk
        assert machine.restore(repository, target, disk=disk) == (
            f"restore.sh: restored {disk} of {REV}: {len(data)} bytes ({human}) to {target}\n"
        )
        assert target.read_bytes() == data
        assert os.access(target, os.W_OK)


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 10 * BLOCK])
@pytest.mark.parametrize("data", [b"x", b"\0"], ids=["data", "zeroes"])
@pytest.mark.parametrize("store", ["chunks", "images"])
def test_a_disk_may_have_any_size(
    machine: Machine,
    tmp_path: Path,
    store: Literal["chunks", "images"],
    data: bytes,
    size: int,
) -> None:
    repository = handmade(tmp_path, store)
    repository.add(REV, {"vda": data * size})
    machine.restore(repository, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == data * size


@pytest.mark.parametrize("size", [1, len(VDA) - 1, len(VDA), 2 * len(VDA)])
def test_nothing_is_left_of_a_file_that_was_there_before(
    machine: Machine, repository: Handmade, tmp_path: Path, size: int
) -> None:
    target = tmp_path / "existing"
    target.write_bytes(b"\xff" * size)
    machine.restore(repository, target)
    assert target.read_bytes() == VDA


@pytest.mark.parametrize("store", ["chunks", "images"])
def test_zeroes_take_no_space(
    machine: Machine, tmp_path: Path, store: Literal["chunks", "images"]
) -> None:
    data = bytes(9 * MIB) + content(16) + bytes(9 * MIB) + b"end" + bytes(MIB)
    # zstd ends each chunk with a byte of its own, so that a block of zeroes costs 4 KiB.
    repository = handmade(tmp_path, store, MIB)
    repository.add(REV, {"vda": data})
    target = tmp_path / "new"
    target.write_bytes(b"\xff" * (4 * MIB))
    machine.restore(repository, target)
    assert target.read_bytes() == data
    assert target.stat().st_blocks * 512 < MIB


def test_twenty_thousand_blocks_are_more_than_one_command_line_can_hold(
    machine: Machine, tmp_path: Path
) -> None:
    data = bytearray(20_000 * BLOCK)
    for block in range(0, 20_000, 500):
        data[block * BLOCK] = 1 + block // 500
    repository = handmade(tmp_path, "chunks")
    repository.add(REV, {"vda": bytes(data)})
    machine.restore(repository, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == data


# Where it can be started, and where it can write to.


@pytest.mark.parametrize("name", ["new file", "-n", "--help", "$(false)"])
def test_a_target_is_seen_from_the_folder_of_the_caller(
    machine: Machine, repository: Handmade, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "my folder"
    folder.mkdir()
    result = machine.run(repository, REV, "vda", name, cwd=folder)
    assert result.returncode == 0, result.stderr
    assert (folder / name).read_bytes() == VDA


@pytest.mark.parametrize("script", ["./restore.sh", "restore.sh", "../vm 1/restore.sh"])
def test_it_runs_in_its_own_folder(
    machine: Machine, repository: Handmade, tmp_path: Path, script: str
) -> None:
    command = [str(machine.tools / "sh"), script, REV, "vda", "../../new"]
    subprocess.run(command, cwd=repository.path, env=machine.environment, check=True)
    assert (tmp_path / "new").read_bytes() == VDA


def test_it_can_be_called_through_a_link(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(repository.path / "restore.sh")
    command = [str(machine.tools / "sh"), "link", REV, "vda", "new"]
    subprocess.run(command, cwd=tmp_path, env=machine.environment, check=True)
    assert (tmp_path / "new").read_bytes() == VDA


def test_a_target_may_be_a_link_to_a_file(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    machine.restore(repository, tmp_path / "link")
    assert (tmp_path / "file").read_bytes() == VDA


def test_stdout_gets_the_disk_and_nothing_else(machine: Machine, repository: Handmade) -> None:
    result = machine.run(repository, REV, "vda", "-")
    assert result.returncode == 0
    assert result.stdout == VDA
    assert f"make sure that it is {len(VDA)} bytes" in result.stderr.decode()


def test_stdout_may_be_a_file_that_has_something_in_it_already(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    (tmp_path / "new").write_bytes(b"head")
    with (tmp_path / "new").open("ab") as file:
        command = machine.command(repository, REV, "vda", "-")
        result = subprocess.run(
            command, env=machine.environment, stdout=file, stderr=subprocess.PIPE, check=True
        )
    assert (tmp_path / "new").read_bytes() == b"head" + VDA
    assert b"make sure" not in result.stderr


@needs_loop_devices
@pytest.mark.parametrize("blockdev", [True, False], ids=["blockdev", "no-blockdev"])
def test_a_block_device_gets_every_byte_and_keeps_what_is_behind_the_disk(
    machine: Machine, repository: Handmade, tmp_path: Path, blockdev: bool
) -> None:
    if blockdev and machine.name != "busybox":
        machine.install("blockdev")
    elif not blockdev and machine.name == "busybox":
        (machine.tools / "blockdev").unlink()
    (tmp_path / "disk").write_bytes(b"\xff" * MIB)
    with loop_device(tmp_path / "disk") as device:
        machine.restore(repository, device)
        assert device.read_bytes() == VDA + b"\xff" * (MIB - len(VDA))


@needs_loop_devices
def test_a_block_device_that_is_too_small_is_not_touched(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(b"\xff" * (len(VDA) - len(VDA) % 512))
    with loop_device(tmp_path / "disk") as device:
        assert "is too small" in machine.refuse(repository, device)
        assert set(device.read_bytes()) == {0xFF}


@needs_loop_devices
def test_a_mounted_block_device_is_not_touched(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    subprocess.run(["mkfs.ext4", "-q", tmp_path / "disk"], check=True)
    (tmp_path / "mounted").mkdir()
    with loop_device(tmp_path / "disk") as device:
        subprocess.run(["mount", device, tmp_path / "mounted"], check=True)
        try:
            before = device.read_bytes()
            assert f"{device} is mounted" in machine.refuse(repository, device)
            assert device.read_bytes() == before
        finally:
            subprocess.run(["umount", tmp_path / "mounted"], check=True)


@pytest.mark.parametrize(
    "target",
    [
        "restore.sh",
        "new",
        f"revisions/{REV}/vda.blocks",
        f"revisions/{REV}/../new",
        "../vm 1/new",
        "../link/new",
        "../image",
    ],
)
def test_a_target_inside_the_repository_is_refused(
    machine: Machine, repository: Handmade, target: str
) -> None:
    (repository.path / ".." / "link").symlink_to(repository.path)
    (repository.path / ".." / "image").symlink_to(repository.index(REV, "vda"))
    before = repository.index(REV, "vda").read_bytes()
    result = machine.run(repository, REV, "vda", target, cwd=repository.path)
    assert result.returncode == 1
    assert b"is inside the repository" in result.stderr
    assert repository.index(REV, "vda").read_bytes() == before
    assert (repository.path / "restore.sh").read_bytes() == RESTORE_SH.read_bytes()
    assert not list(repository.path.rglob("new"))


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("/dev/no-such-device", "there is no device /dev/no-such-device"),
        ("/", "/ is a folder. Name a file in it"),
        ("no-such-folder/new", "cannot write"),
        ("link-to-nothing", "is a link to a file that does not exist"),
    ],
)
def test_a_mistyped_target_is_refused(
    machine: Machine, repository: Handmade, target: str, reason: str
) -> None:
    (repository.path.parent / "link-to-nothing").symlink_to(repository.path / "new")
    assert reason in machine.refuse(repository, target)
    assert not Path("/dev/no-such-device").exists()


def test_a_program_that_is_missing_is_named(
    machine: Machine, chunked: Handmade, tmp_path: Path
) -> None:
    (machine.tools / "zstd").unlink()
    assert "zstd is not installed" in machine.refuse(chunked, tmp_path / "new")


# Damage.


def test_every_block_whose_chunk_is_missing_is_named_and_the_target_is_not_touched(
    machine: Machine, either: Handmade, tmp_path: Path
) -> None:
    (tmp_path / "existing").write_bytes(b"precious")
    missing = {block: either.chunk(REV, "vda", block) for block in (3, 5, 60)}
    for chunk in missing.values():
        chunk.unlink()
    said = machine.refuse(either, tmp_path / "existing")
    # Block 5 is one of the blocks that repeat, so its chunk is missing from all of them.
    lost = {3: missing[3], **dict.fromkeys(range(2, 60, 3), missing[5]), 60: missing[60]}
    lines = [line for line in said.splitlines() if " at byte " in line]
    assert sorted(lines) == sorted(
        f"restore.sh: block {block} at byte {block * BLOCK}: "
        f"{chunk.relative_to(either.path)} is missing"
        for block, chunk in lost.items()
    )
    assert (tmp_path / "existing").read_bytes() == b"precious"
    assert "has not been touched" in said


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped-bit": flip_a_bit,
    "truncated": lambda chunk: os.truncate(chunk, chunk.stat().st_size - 1),
    "empty": lambda chunk: os.truncate(chunk, 0),
    "not-compressed": lambda chunk: chunk.write_bytes(bytes(BLOCK)),
    "too-short": lambda chunk: chunk.write_bytes(compressed(b"other")),
    "too-long": lambda chunk: chunk.write_bytes(compressed(bytes(BLOCK + 1))),
    "a-bomb": lambda chunk: chunk.write_bytes(compressed(b"x" * 8 * MIB)),
    "a-bomb-of-zeroes": lambda chunk: chunk.write_bytes(compressed(bytes(8 * MIB))),
    "a-bomb-of-no-known-size": lambda chunk: chunk.write_bytes(
        zstandard.ZstdCompressor(write_content_size=False).compress(b"y" * 8 * MIB)
    ),
    "many-frames": lambda chunk: chunk.write_bytes(chunk.read_bytes() * 1000),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damaged_block_is_named_and_no_half_restored_file_is_left(
    machine: Machine, chunked: Handmade, tmp_path: Path, damage: str
) -> None:
    for block in (30, 60):
        DAMAGE[damage](chunked.chunk(REV, "vda", block))
    said = machine.refuse(chunked, tmp_path / "new")
    lines = [line for line in said.splitlines() if " at byte " in line]
    for line, block in zip(lines, (30, 60), strict=True):
        chunk = chunked.chunk(REV, "vda", block).relative_to(chunked.path)
        assert f"block {block} at byte {block * BLOCK}: {chunk} " in line
    assert "FAILED" in said
    assert (tmp_path / "new").read_bytes() == b""
    assert "restored" not in said.splitlines()[-1]


@needs_loop_devices
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_block_is_noticed_on_a_block_device_too(
    machine: Machine, chunked: Handmade, tmp_path: Path, damage: str
) -> None:
    DAMAGE[damage](chunked.chunk(REV, "vda", 30))
    (tmp_path / "disk").write_bytes(bytes(MIB))
    with loop_device(tmp_path / "disk") as device:
        said = machine.refuse(chunked, device)
    assert f"block 30 at byte {30 * BLOCK}: " in said
    assert "do not use it" in said


@pytest.mark.parametrize("damage", ["flipped-bit", "empty"])
def test_a_damaged_block_is_noticed_on_stdout_too(
    machine: Machine, either: Handmade, damage: str
) -> None:
    DAMAGE[damage](either.chunk(REV, "vda", 30))
    assert f"block 30 at byte {30 * BLOCK}: " in machine.refuse(either, "-")


def test_only_the_disk_with_the_damage_cannot_be_restored(
    machine: Machine, chunked: Handmade, tmp_path: Path
) -> None:
    flip_a_bit(chunked.chunk(REV, "vda", 30))
    machine.restore(chunked, tmp_path / "new", disk="vdb")
    assert (tmp_path / "new").read_bytes() == VDB


LIST_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a-line-is-missing": lambda lines: lines[65:],
    "a-line-too-much": lambda lines: lines + lines[:65],
    "no-newline-at-the-end": lambda lines: lines[:-1],
    "empty": lambda _: b"",
    "zeroes": lambda lines: bytes(len(lines)),
    "no-hex-digit": lambda lines: lines[:30] + b"G" + lines[31:],
    "two-lines-joined": lambda lines: lines[:64] + b"a" + lines[65:],
    "upper": lambda lines: lines[:65].upper() + lines[65:],
}


@pytest.mark.parametrize("damage", LIST_DAMAGE)
def test_a_damaged_index_is_found_before_the_target_is_touched(
    machine: Machine, format_1: Handmade, tmp_path: Path, damage: str
) -> None:
    (tmp_path / "existing").write_bytes(b"precious")
    index = format_1.index(REV, "vda")
    index.write_bytes(LIST_DAMAGE[damage](index.read_bytes()))
    assert "vda.blocks is damaged" in machine.refuse(format_1, tmp_path / "existing")
    assert (tmp_path / "existing").read_bytes() == b"precious"


def test_an_index_with_other_hashes_is_found_with_b3sum(
    machine: Machine, format_1: Handmade, tmp_path: Path
) -> None:
    lines = format_1.index(REV, "vda").read_text().splitlines(keepends=True)
    format_1.index(REV, "vda").write_text("".join([lines[3], *lines[1:]]))
    assert "b3sum is not installed, so" in machine.restore(format_1, tmp_path / "new")
    machine.install("b3sum")
    assert "its hash is not" in machine.refuse(format_1, tmp_path / "new")


def test_a_missing_index_is_named(machine: Machine, format_1: Handmade, tmp_path: Path) -> None:
    format_1.index(REV, "vda").unlink()
    said = machine.refuse(format_1, tmp_path / "new")
    assert f"neither {format_1.image(REV, 'vda')} nor {format_1.index(REV, 'vda')}" in said


def test_an_image_of_the_wrong_size_is_found_before_the_target_is_touched(
    machine: Machine, tmp_path: Path
) -> None:
    repository = handmade(tmp_path, "images")
    repository.add(REV, {"vda": VDA})
    os.truncate(repository.image(REV, "vda"), len(VDA) - 1)
    assert "vda.img is damaged" in machine.refuse(repository, tmp_path / "new")
    assert not (tmp_path / "new").exists()


BOMBS = [name for name in DAMAGE if "bomb" in name or name == "many-frames"]


@needs_loop_devices
@pytest.mark.parametrize("damage", BOMBS)
def test_nothing_is_written_behind_the_end_of_a_disk_whatever_a_chunk_unpacks_to(
    machine: Machine, chunked: Handmade, tmp_path: Path, damage: str
) -> None:
    DAMAGE[damage](chunked.chunk(REV, "vda", 60))
    behind = b"\xff" * (MIB - len(VDA))
    (tmp_path / "disk").write_bytes(bytes(len(VDA)) + behind)
    with loop_device(tmp_path / "disk") as device:
        said = machine.refuse(chunked, device)
        assert device.read_bytes()[len(VDA) :] == behind
    assert "unpacks to more than 1000 bytes" in said
    result = machine.run(chunked, REV, "vda", "-")
    assert result.returncode == 1
    assert len(result.stdout) == len(VDA)
    with file_system("tmpfs", 2 * MIB) as folder:
        said = machine.refuse(chunked, folder / "new")
    assert "Is it full?" not in said
    assert "unpacks to more than 1000 bytes" in said


# A folder that somebody else has prepared.


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_there(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_itself(path: Path) -> None:
    """A link to the very content: it is refused for being a link."""
    path.rename(path.with_name("aside"))
    path.symlink_to(path.with_name("aside"))


def endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


KINDS = [folder_there, link_to_itself, endless]
PLACES = ["revision.json", "vda.blocks", "vda.img", "chunk"]
CASES = [(place, pipe) for place in PLACES]
CASES += [(place, KINDS[number % len(KINDS)]) for number, place in enumerate(PLACES)]


@pytest.mark.parametrize(("place", "kind"), CASES)
def test_nothing_but_a_plain_file_is_opened_and_the_target_is_not_touched(
    machine: Machine, tmp_path: Path, kind: Callable[[Path], None], place: str
) -> None:
    # In format 2 there is a twin of the index, which would be used.
    repository = handmade(tmp_path, "images" if place == "vda.img" else "chunks", version=1)
    repository.add(REV, {"vda": VDA})
    folder = repository.path / "revisions" / REV
    kind(repository.chunk(REV, "vda", 30) if place == "chunk" else folder / place)
    (tmp_path / "existing").write_bytes(b"precious")
    with ends(60):
        said = machine.refuse(repository, tmp_path / "existing")
        listed = machine.run(repository)
    assert (tmp_path / "existing").read_bytes() == b"precious"
    assert all(line.startswith("restore.sh: ") for line in said.splitlines())
    assert listed.stderr == b""
    if place == "revision.json":
        assert listed.stdout.decode() == f"{REV}  its revision.json cannot be read  \n"


@pytest.mark.parametrize(
    "place",
    [f"revisions/{REV}", "revisions"]
    + [f"{folder}{ab}" for folder in ("chunks", "pages", "twins") for ab in ("", "/ab")],
)
def test_a_folder_that_is_a_link_is_refused(
    machine: Machine, chunked: Handmade, tmp_path: Path, place: str
) -> None:
    path = chunked.path / place
    if path.exists():
        path.rename(tmp_path / "elsewhere")
    else:
        (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere")
    said = machine.refuse(chunked, tmp_path / "new")
    assert "is a link" in said or f"there is no revision {REV}" in said
    assert not (tmp_path / "new").exists()


def test_what_backy_did_not_make_does_not_stop_a_restore(
    machine: Machine, chunked: Handmade, tmp_path: Path
) -> None:
    for folder in [path for path in chunked.path.rglob("*") if path.is_dir()]:
        (folder / "\x1b[2J").symlink_to("/etc")
        (folder / ".nfs0001").touch()
        (folder / "a copy").mkdir()
        os.mkfifo(folder / "pipe")
    assert machine.run(chunked).stderr == b""
    machine.restore(chunked, tmp_path / "new")


def change(repository: Handmade, old: str, new: str) -> None:
    path = repository.path / "revisions" / REV / "revision.json"
    text = path.read_text(encoding="latin-1")
    assert old in text
    path.write_text(text.replace(old, new), encoding="latin-1")


def test_no_text_of_a_repository_speaks_to_the_terminal(machine: Machine, tmp_path: Path) -> None:
    repository = handmade(tmp_path, "chunks")
    repository.add(REV, {"vda": VDB}, tags=["TAG"], trust="TRUST")
    evil = "\x1b[2J\x9b31m\r\x07\x7f%s\\n"
    for word in ("TAG", "TRUST", "2026-11-23T00:49:38Z"):
        change(repository, word, f"a{evil}z")
    change(repository, '"vda": {\n      "size": 12288', f'"vd{evil}": {{\n      "size": 12288')
    for name in (f"20261124T004938Z-{evil}", "20261124T004938Z-a1b2\n", f"2{evil}Z-a1b2"):
        (repository.path / "revisions" / name.encode("latin-1").decode("latin-1")).mkdir()
    result = machine.run(repository)
    assert result.returncode == 0
    assert result.stderr == b""
    assert result.stdout.replace(b"\n", b"").decode("ascii").isprintable()
    assert result.stdout.count(b"Z-") == 1
    said = machine.run(repository, REV, "vda", tmp_path / "new").stderr
    assert said.replace(b"\n", b"").decode("ascii").isprintable()


@pytest.mark.parametrize("value", ["99999999999999999999", "0", "010", "9" * 19, "abc"])
def test_a_size_that_no_disk_has_is_refused_in_words(
    machine: Machine, either: Handmade, tmp_path: Path, value: str
) -> None:
    for key, right in (("block_size", BLOCK), ("size", len(VDA))):
        change(either, f'"{key}": {right}', f'"{key}": {value}')
        (line,) = machine.refuse(either, tmp_path / "new").splitlines()
        assert line.startswith("restore.sh: vda of ") or "there is no disk vda" in line
        listed = machine.run(either)
        assert (listed.returncode, listed.stderr) == (0, b"")
        assert not (tmp_path / "new").exists()


def test_a_restored_disk_is_for_its_owner_alone(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    (tmp_path / "existing").touch()
    (tmp_path / "existing").chmod(0o640)
    before = os.umask(0)
    try:
        machine.restore(repository, tmp_path / "new")
        machine.restore(repository, tmp_path / "existing")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "existing").stat().st_mode & 0o777 == 0o640


# Pages and their twins.

# Two kinds of blocks in an order that differs from page to page; zeroes are one page, used twice.
_SOURCE = random.Random(3)
_KINDS = [_SOURCE.randbytes(BLOCK) for _ in range(2)]
DATA_PAGES = [b"".join(_SOURCE.choices(_KINDS, k=PAGE)) for _ in range(2)]
PAGED = DATA_PAGES[0] + bytes(2 * PAGE * BLOCK) + DATA_PAGES[1] + content(60, 1000)
SPAN = PAGE * BLOCK


@pytest.fixture
def paged(tmp_path: Path) -> Handmade:
    """A disk of five pages, of which two are the same file and the last is shorter."""
    repository = handmade(tmp_path, "chunks")
    repository.add(REV, {"vda": PAGED, "vdb": VDB})
    pages = repository.pages(REV, "vda")
    assert [page.stat().st_size for page in pages] == [*[65 * PAGE] * 4, 65 * 61]
    assert pages[1] == pages[2]
    return repository


def copies(repository: Handmade, number: int) -> tuple[Path, Path]:
    """A page and its twin."""
    page = repository.pages(REV, "vda")[number]
    return page, repository.twin(page)


def changed(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def other_digit(lines: bytes) -> bytes:
    return (b"1" if lines[:1] == b"0" else b"0") + lines[1:]


def other_order(lines: bytes) -> bytes:
    return b"".join(sorted(lines.splitlines(keepends=True)))


# What the shape of a file tells, and what only its hash does.
BAD_SHAPES: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "pipe": pipe,
    "folder": folder_there,
    "link": link_to_itself,
    "endless": endless,
    **{name: changed(damage) for name, damage in LIST_DAMAGE.items()},
}
BAD_HASHES: dict[str, Callable[[Path], object]] = {
    "flipped-digit": changed(other_digit),
    "other-order": changed(other_order),
    "another-page": changed(lambda lines: text_of([digest_of(_KINDS[0])]) * (len(lines) // 65)),
}


@pytest.mark.parametrize("blocks", [1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 2 * PAGE + 1])
def test_a_disk_may_have_any_number_of_blocks_and_pages(
    machine: Machine, tmp_path: Path, blocks: int
) -> None:
    machine.install("b3sum")
    data = b"".join(_KINDS[n % 7 % 2] for n in range(blocks))
    repository = handmade(tmp_path, "chunks")
    repository.add(REV, {"vda": data})
    (line,) = machine.restore(repository, tmp_path / "new").splitlines()
    assert line.startswith("restore.sh: restored vda")
    assert (tmp_path / "new").read_bytes() == data


def test_a_repository_of_format_2_may_have_revisions_of_format_1(
    machine: Machine, paged: Handmade, tmp_path: Path
) -> None:
    replace(paged, format=1).add(OLD, {"vda": OLD_VDA})
    machine.restore(paged, tmp_path / "old", revision=OLD)
    machine.restore(paged, tmp_path / "new")
    assert (tmp_path / "old").read_bytes() == OLD_VDA
    assert (tmp_path / "new").read_bytes() == PAGED


@pytest.mark.parametrize("number", ["3", "10", "99999999999999999999"])
def test_a_format_that_this_script_does_not_know_is_refused_with_the_way_out(
    machine: Machine, chunked: Handmade, tmp_path: Path, number: str
) -> None:
    change(chunked, '"format": 2', f'"format": {number}')
    (line,) = machine.refuse(chunked, tmp_path / "new").splitlines()
    assert f"{REV} has format {number}" in line
    assert "update backy" in line
    assert not (tmp_path / "new").exists()


def test_good_pages_cost_no_process_each(machine: Machine, tmp_path: Path) -> None:
    machine.install("b3sum")
    repository = handmade(tmp_path, "chunks")
    repository.add(REV, {"vda": PAGED, "vdb": VDB})
    for program in ("sed", "stat", "cat", "b3sum"):
        path = (machine.tools / program).resolve()
        (machine.tools / program).unlink()
        real = f"{path} {program}" if path.name == "busybox" else str(path)
        log = f'echo {program} >>"{tmp_path}/runs"'
        (machine.tools / program).write_text(f'#!/bin/sh\n{log}\nexec {real} "$@"\n')
        (machine.tools / program).chmod(0o755)
    runs = []
    for disk in ("vda", "vdb"):
        (tmp_path / "runs").write_text("")
        machine.restore(repository, tmp_path / "new", disk=disk)
        runs.append((tmp_path / "runs").read_text().split())
    # The parts of a pipeline start in any order.
    assert sorted(runs[0]) == sorted(runs[1])
    assert {"sed", "stat", "cat", "b3sum"} == set(runs[0])


@pytest.mark.parametrize("damage", BAD_SHAPES)
def test_a_page_that_is_no_page_is_replaced_by_its_twin(
    machine: Machine, paged: Handmade, tmp_path: Path, damage: str
) -> None:
    for number in (0, 1):
        BAD_SHAPES[damage](copies(paged, number)[0])
    with ends(60):
        said = machine.restore(paged, tmp_path / "new").splitlines()
    assert "b3sum is not installed, so no hash of" in said[0]
    # The page of zeroes is used twice, and is one.
    assert said[1] == "restore.sh: missing or damaged pages of vda, whose twins are used instead: 2"
    assert len(said) == 3
    assert (tmp_path / "new").read_bytes() == PAGED


@pytest.mark.parametrize("damage", [*BAD_HASHES, "missing", "pipe"])
@pytest.mark.parametrize("number", [0, 4], ids=["full-page", "last-page"])
def test_a_page_with_another_hash_is_replaced_by_its_twin(
    machine: Machine, paged: Handmade, tmp_path: Path, damage: str, number: int
) -> None:
    machine.install("b3sum")
    (BAD_HASHES | BAD_SHAPES)[damage](copies(paged, number)[0])
    with ends(60):
        said = machine.restore(paged, tmp_path / "new").splitlines()
    assert said[0] == "restore.sh: missing or damaged pages of vda, whose twins are used instead: 1"
    assert len(said) == 2
    assert (tmp_path / "new").read_bytes() == PAGED


def test_pages_that_were_swapped_are_replaced_by_their_twins(
    machine: Machine, paged: Handmade, tmp_path: Path
) -> None:
    machine.install("b3sum")
    one, other = paged.pages(REV, "vda")[0], paged.pages(REV, "vda")[3]
    one.rename(tmp_path / "aside")
    other.rename(one)
    (tmp_path / "aside").rename(other)
    assert "twins are used instead: 2\n" in machine.restore(paged, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == PAGED


@pytest.mark.parametrize("b3sum", [True, False], ids=["b3sum", "no-b3sum"])
def test_all_pages_may_be_lost_if_the_twins_are_there(
    machine: Machine, paged: Handmade, tmp_path: Path, b3sum: bool
) -> None:
    if b3sum:
        machine.install("b3sum")
    shutil.rmtree(paged.path / "pages")
    assert "twins are used instead: 4\n" in machine.restore(paged, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == PAGED


def test_a_folder_of_pages_that_is_no_folder_costs_its_pages_only(
    machine: Machine, paged: Handmade, tmp_path: Path
) -> None:
    folder = paged.pages(REV, "vda")[0].parent
    shutil.rmtree(folder)
    os.mkfifo(folder)
    with ends(60):
        assert "twins are used instead: 1\n" in machine.restore(paged, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == PAGED


def test_bad_twins_of_good_pages_are_not_even_looked_at(
    machine: Machine, paged: Handmade, tmp_path: Path
) -> None:
    for number in (0, 1, 3, 4):
        pipe(copies(paged, number)[1])
    with ends(60):
        assert "are used" not in machine.restore(paged, tmp_path / "new")


BOTH_BAD = ["missing", "pipe", "link", "a-line-is-missing", "no-hex-digit", "flipped-digit"]


@pytest.mark.parametrize("damage", BOTH_BAD)
def test_a_page_without_a_good_copy_is_named_and_the_target_is_not_touched(
    machine: Machine, paged: Handmade, tmp_path: Path, damage: str
) -> None:
    if damage in BAD_HASHES:
        machine.install("b3sum")
    lost = {1: (SPAN, 2 * SPAN), 2: (2 * SPAN, 3 * SPAN), 4: (4 * SPAN, len(PAGED))}
    for number in (1, 4):
        for path in copies(paged, number):
            (BAD_HASHES | BAD_SHAPES)[damage](path)
    # A page with a good twin is none of those that are lost.
    copies(paged, 0)[0].unlink()
    (tmp_path / "existing").write_bytes(b"precious")
    pages = [page.name for page in paged.pages(REV, "vda")]
    with ends(60):
        said = machine.refuse(paged, tmp_path / "existing").splitlines()
    named = [line for line in said if ", bytes " in line]
    for line, (number, (start, end)) in zip(named, lost.items(), strict=True):
        beginning = f"restore.sh: page {number}, bytes {start} to {end - 1} of vda: "
        assert line.startswith(f"{beginning}pages/{pages[number][:2]}/{pages[number]} is ")
        assert f", and twins/{pages[number][:2]}/{pages[number]} is " in line
    assert "has not been touched" in said[-1]
    assert (tmp_path / "existing").read_bytes() == b"precious"
    machine.restore(paged, tmp_path / "new", disk="vdb")


def test_a_page_that_lists_no_hashes_is_refused_though_its_hash_is_right(
    machine: Machine, chunked: Handmade, tmp_path: Path
) -> None:
    machine.install("b3sum")
    evil = b"/etc/passwd".ljust(64) + b"\n"
    page = chunked.pages(REV, "vdb")[0].read_bytes()[65:] + evil
    (chunked.path / "pages" / digest_of(page)[:2]).mkdir(exist_ok=True)
    (chunked.path / "pages" / digest_of(page)[:2] / digest_of(page)).write_bytes(page)
    index = chunked.index(REV, "vdb")
    before = digest_of(index.read_bytes())
    index.write_bytes(text_of([digest_of(page)]))
    change(chunked, before, digest_of(index.read_bytes()))
    said = machine.refuse(chunked, tmp_path / "new", disk="vdb")
    assert "is damaged: line 3 is no hash, and twins/" in said
    assert not (tmp_path / "new").exists()


def test_a_wrong_page_is_not_noticed_without_b3sum_which_is_said(
    machine: Machine, paged: Handmade, tmp_path: Path
) -> None:
    changed(other_order)(copies(paged, 0)[0])
    said = machine.restore(paged, tmp_path / "new")
    assert "b3sum is not installed, so no hash of" in said
    assert (tmp_path / "new").read_bytes() != PAGED


# The twin of an index.


@pytest.mark.parametrize("damage", BAD_SHAPES)
def test_the_twin_of_an_index_is_used_if_the_index_is_no_index(
    machine: Machine, paged: Handmade, tmp_path: Path, damage: str
) -> None:
    BAD_SHAPES[damage](paged.index(REV, "vda"))
    with ends(60):
        said = machine.restore(paged, tmp_path / "new").splitlines()
    assert said[1].startswith(f"restore.sh: revisions/{REV}/vda.blocks is ")
    assert ": its twin is used instead, twins/" in said[1]
    assert len(said) == 3
    assert (tmp_path / "new").read_bytes() == PAGED


@pytest.mark.parametrize("damage", BAD_HASHES)
def test_the_twin_of_an_index_is_used_if_the_index_has_another_hash(
    machine: Machine, paged: Handmade, tmp_path: Path, damage: str
) -> None:
    machine.install("b3sum")
    BAD_HASHES[damage](paged.index(REV, "vda"))
    assert "its twin is used instead" in machine.restore(paged, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == PAGED


@pytest.mark.parametrize("damage", BOTH_BAD)
def test_an_index_without_a_good_copy_is_refused_and_the_target_is_not_touched(
    machine: Machine, paged: Handmade, tmp_path: Path, damage: str
) -> None:
    if damage in BAD_HASHES:
        machine.install("b3sum")
    (tmp_path / "existing").write_bytes(b"precious")
    for path in (paged.index_twin(REV, "vda"), paged.index(REV, "vda")):
        (BAD_HASHES | BAD_SHAPES)[damage](path)
    with ends(60):
        said = machine.refuse(paged, tmp_path / "existing").splitlines()[-1]
    assert said.startswith(f"restore.sh: revisions/{REV}/vda.blocks is ")
    assert ", and its twin twins/" in said
    assert (tmp_path / "existing").read_bytes() == b"precious"


@pytest.mark.parametrize("value", ["", "a", "ab", "xyz", "../../x"])
def test_an_index_hash_that_is_none_leads_nowhere(
    machine: Machine, paged: Handmade, tmp_path: Path, value: str
) -> None:
    index = paged.index(REV, "vda")
    change(paged, digest_of(index.read_bytes()), value)
    index.unlink()
    said = machine.refuse(paged, tmp_path / "new")
    assert all(line.startswith("restore.sh: ") for line in said.splitlines())
    assert not (tmp_path / "new").exists()


# The script of the package.


@pytest.fixture
def packaged(machine: Machine) -> Path:
    shutil.copy(RESTORE_SH, machine.tools / "backy-restore")
    (machine.tools / "backy-restore").chmod(0o755)
    return machine.tools / "backy-restore"


def test_backy_restore_is_the_same_script_and_takes_the_folder(
    machine: Machine, packaged: Path, repository: Handmade, tmp_path: Path
) -> None:
    (repository.path / "restore.sh").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(machine.tools / "sh"), str(packaged), *arguments]
        folder, env = repository.path.parent, machine.environment
        return subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, check=False
        )

    assert run("vm 1").stdout.splitlines()[-1] == "    vdb  12.0 KiB  12288 bytes"
    said = run("vm 1", REV, "vda", "new")
    assert (said.returncode, said.stdout) == (0, "")
    assert said.stderr.splitlines()[-1].startswith(f"backy-restore: restored vda of {REV}: ")
    assert (repository.path.parent / "new").read_bytes() == VDA
    assert run().returncode == run("vm 1", REV).returncode == 2
    assert run("--help").stdout.startswith("usage: backy-restore FOLDER ")
    assert f"See: backy-restore {repository.path}" in run("vm 1", "1999", "vda", "x").stderr
    assert "cannot enter the folder" in run("nowhere", REV, "vda", "x").stderr
    assert not (tmp_path / "ran").exists()


# Devices that somebody uses.


@contextmanager
def in_use(*words: str | Path, undo: Sequence[str | Path]) -> Iterator[None]:
    subprocess.run(words, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(undo, check=True)


@contextmanager
def second_of_a_btrfs(device: Path, folder: Path) -> Iterator[None]:
    (folder / "first").touch()
    os.truncate(folder / "first", 128 * MIB)
    with loop_device(folder / "first") as first:
        subprocess.run(["mkfs.btrfs", "-q", "-f", first, device], check=True, capture_output=True)
        (folder / "mounted").mkdir()
        # Read-only, because btrfs commits by itself half a minute later.
        mounted = folder / "mounted"
        with in_use("mount", "-o", "ro", first, mounted, undo=["umount", mounted]):
            yield


@contextmanager
def swap_space(device: Path, _: Path) -> Iterator[None]:
    subprocess.run(["mkswap", device], check=True, capture_output=True)
    with in_use("swapon", device, undo=["swapoff", device]):
        yield


@contextmanager
def exclusive(device: Path, _: Path) -> Iterator[None]:
    """As ZFS holds it: only the kernel knows."""
    descriptor = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        yield
    finally:
        os.close(descriptor)


def head(path: Path) -> bytes:
    """The first page, where a restore would begin to write."""
    with path.open("rb") as file:
        return file.read(4096)


def other_node(number: int, folder: Path) -> Path:
    """A node of a device by a name that nobody else knows."""
    os.mknod(folder / "node", 0o600 | stat.S_IFBLK, number)
    return folder / "node"


@needs_loop_devices
@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (second_of_a_btrfs, "is part of something else, see /sys/fs/btrfs/"),
        (swap_space, "is mounted, or swap"),
        (exclusive, "is in use"),
    ],
)
def test_a_device_that_is_in_use_is_not_touched_by_any_name(
    machine: Machine,
    chunked: Handmade,
    tmp_path: Path,
    use: Callable[[Path, Path], AbstractContextManager[None]],
    reason: str,
) -> None:
    if use is exclusive:
        (machine.tools / "wipefs").symlink_to(str(shutil.which("wipefs")))
    (tmp_path / "disk").touch()
    os.truncate(tmp_path / "disk", 128 * MIB)
    with loop_device(tmp_path / "disk") as device, use(device, tmp_path):
        # Of swap only the header stays: with little memory for a program, the kernel does use it.
        before = head(tmp_path / "disk")
        for target in (device, other_node(device.stat().st_rdev, tmp_path)):
            assert reason in machine.refuse(chunked, target)
        assert head(tmp_path / "disk") == before


# As LVM, LUKS, multipath and md show what they hold; the kernel of a test machine may have none.
HELD = 'mount -t tmpfs none "$1" && : >"$1/dm-0" && shift && exec "$@"'


@needs_loop_devices
def test_a_device_that_another_one_holds_is_not_touched(
    machine: Machine, chunked: Handmade, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(bytes(MIB))
    with loop_device(tmp_path / "disk") as device:
        holders = f"/sys/block/{device.name}/holders"
        held = ["unshare", "--mount", "/bin/sh", "-c", HELD, "sh", holders]
        command = [*held, "env", "-i", f"PATH={machine.tools}"]
        command += map(str, machine.command(chunked, REV, "vda", device))
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 1, result
        assert f"{device} is part of something else, see /sys/dev/block/" in result.stderr
        assert result.stderr.rstrip().endswith("holders/dm-0: end that first")
        assert device.read_bytes() == bytes(MIB)


@needs_loop_devices
def test_a_disk_with_a_partition_in_use_is_not_touched_nor_a_part_of_a_disk_in_use(
    machine: Machine, chunked: Handmade, tmp_path: Path
) -> None:
    (tmp_path / "disk").touch()
    os.truncate(tmp_path / "disk", 16 * MIB)
    with loop_device(tmp_path / "disk") as device:
        undo: list[str | Path] = ["delpart", device, "1"]
        with in_use("addpart", device, "1", "2048", "8192", undo=undo):
            number = Path(f"/sys/class/block/{device.name}p1/dev").read_text().split(":")
            part = other_node(os.makedev(*map(int, number)), tmp_path)
            with swap_space(part, tmp_path):
                assert "is mounted, or swap" in machine.refuse(chunked, device)
            with swap_space(device, tmp_path):
                assert "is mounted, or swap" in machine.refuse(chunked, part)
            machine.restore(chunked, part)


# Other failures.


@needs_loop_devices
def test_a_full_disk_is_reported_and_the_space_given_back(
    machine: Machine, repository: Handmade
) -> None:
    with file_system("tmpfs", 100 * 1024) as folder:
        said = machine.refuse(repository, folder / "new")
        assert (folder / "new").stat().st_size == 0
    assert "Is it full?" in said
    assert "FAILED" in said


def test_a_full_device_is_reported(machine: Machine, repository: Handmade) -> None:
    said = machine.refuse(repository, "/dev/full")
    assert "Is it full?" in said
    assert "do not use it" in said


def test_it_stops_at_the_first_write_that_fails(machine: Machine, tmp_path: Path) -> None:
    repository = handmade(tmp_path, "chunks")
    repository.add(REV, {"vda": bytes(20_000 * BLOCK)})
    (machine.tools / "zstd").rename(machine.tools / "real")
    (machine.tools / "zstd").write_text('#!/bin/sh\necho "$1" >>"$0.runs"\nexec real "$@"\n')
    (machine.tools / "zstd").chmod(0o755)
    machine.refuse(repository, "/dev/full")
    assert (machine.tools / "zstd.runs").read_text().split() == ["-dcq"]


def test_a_reader_that_goes_away_is_a_failure(machine: Machine, repository: Handmade) -> None:
    command = machine.command(repository, REV, "vda", "-")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=machine.environment, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait() == 1
    assert "FAILED" in said
    # It is no fault of the chunks, so they are not read again.
    assert "reading every chunk" not in said


@pytest.mark.parametrize(
    ("program", "arguments", "breaks_off", "blocks"),
    [
        pytest.param("sed", "*zst*", 'real 9q | real "$1"', 9, id="the-list-of-chunks"),
        pytest.param("xargs", "*zst*", "cat >/dev/null", 0, id="what-starts-zstd"),
        pytest.param("xargs", "cat", "cat >/dev/null", 0, id="what-reads-the-pages"),
    ],
)
def test_a_part_of_the_pipeline_that_breaks_off_is_a_failure(
    machine: Machine,
    chunked: Handmade,
    program: str,
    arguments: str,
    breaks_off: str,
    blocks: int,
) -> None:
    path = machine.tools / program
    path.rename(machine.tools / "real")
    if machine.name == "busybox":
        # It knows what it is by its name.
        (machine.tools / "real").unlink()
        (machine.tools / "real").write_text(f'#!/bin/sh\nexec busybox {program} "$@"\n')
        (machine.tools / "real").chmod(0o755)
    # The first time, the chunks are only looked at. The second time, they are to be restored.
    path.write_text(
        "#!/bin/sh\n"
        f'case $* in {arguments}) [ -e "$0.used" ] && {breaks_off} && exit 4; esac\n'
        'case $* in *zst* | ls*) : >"$0.used"; esac\n'
        'exec real "$@"\n'
    )
    path.chmod(0o755)
    # The size of a file would show it too, but nothing tells what went through a pipe.
    result = machine.run(chunked, REV, "vda", "-")
    assert result.returncode == 1
    assert result.stdout == VDA[: blocks * BLOCK]
    assert b"FAILED" in result.stderr


def test_an_interrupted_restore_says_that_the_target_is_not_the_disk(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    # Nothing more is read from the pipe, so once it is full the restore has to wait.
    with (
        ends(60),
        subprocess.Popen(
            [*WITH_DEFAULTS, *machine.command(repository, REV, "vda", tmp_path / "pipe")],
            env=machine.environment,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process,
        (tmp_path / "pipe").open("rb", buffering=0) as pipe,
    ):
        assert pipe.read(1) == VDA[:1]
        os.killpg(process.pid, signal.SIGINT)
        said = process.communicate()[1].decode()
    assert process.returncode != 0
    assert "FAILED" in said


# The script itself.


def test_shellcheck_finds_nothing() -> None:
    need(absent("shellcheck"))
    subprocess.run(["shellcheck", "--shell=sh", RESTORE_SH], check=True)


PAGES_AT_HEAD = "sed 's|^..|pages/&/&|' revisions/REV/vda.blocks | xargs cat"


def at_head(folder: Path, version: int = 2) -> list[str]:
    """The commands in the comment at the head of the script, for targets in `folder`.

    First those that restore, then the one that brings pages back, then those that check, then the
    one that goes around damage.
    """
    comment = RESTORE_SH.read_text().split("\nset -u")[0].splitlines()
    lines = [line.removeprefix("#   ") if line.startswith("#   ") else "" for line in comment]
    parts = "\n".join(lines).split("\n\n")
    commands = [part.strip() for part in parts if part.strip()]
    places = {"REV": REV, "/new/": f"{folder}/", "1048576": str(BLOCK)}
    if version == 1:
        places = {PAGES_AT_HEAD: "cat revisions/REV/vda.blocks", **places}
    for name, value in places.items():
        commands = [command.replace(name, value) for command in commands]
    return commands


def shell(repository: Handmade, command: str) -> int:
    """Run a command as a person would in the folder of the repository."""
    return subprocess.run(["sh", "-c", command], cwd=repository.path, check=False).returncode


def test_the_commands_at_its_head_restore_and_check_without_it(
    repository: Handmade, tmp_path: Path
) -> None:
    need(absent("b3sum"))
    restore, _, check, _ = at_head(tmp_path)
    if repository.store == "images":
        restore = restore[: restore.index("sed ")]
    assert shell(repository, restore) == 0
    assert (tmp_path / "disk.img").read_bytes() == VDA
    assert shell(repository, check) == 0
    (tmp_path / "disk.img").chmod(0o600)
    flip_a_bit(tmp_path / "disk.img")
    assert shell(repository, check) == 1


def test_the_commands_at_its_head_save_all_that_is_not_damaged(
    either: Handmade, tmp_path: Path
) -> None:
    *_, salvage = at_head(tmp_path, either.format)
    flip_a_bit(either.chunk(REV, "vda", 3))
    either.chunk(REV, "vda", 6).unlink()
    assert shell(either, salvage) == 0
    lost = VDA[: 3 * BLOCK] + bytes(BLOCK) + VDA[4 * BLOCK : 6 * BLOCK] + bytes(BLOCK)
    assert (tmp_path / "disk.img").read_bytes() == lost + VDA[7 * BLOCK :]


def test_the_commands_at_its_head_restore_and_check_format_1_too(
    format_1: Handmade, tmp_path: Path
) -> None:
    need(absent("b3sum"))
    restore, _, check, _ = at_head(tmp_path, version=1)
    restore = restore[restore.index("cat revisions/" + REV + "/vda.blocks") :]
    assert shell(format_1, restore) == 0
    assert (tmp_path / "disk.img").read_bytes() == VDA
    assert shell(format_1, check) == 0


def test_the_command_at_its_head_brings_lost_pages_back(
    machine: Machine, chunked: Handmade, tmp_path: Path
) -> None:
    shutil.rmtree(chunked.path / "pages")
    (chunked.path / "pages").mkdir()
    _, bring_back, *_ = at_head(tmp_path)
    assert shell(chunked, bring_back) == 0
    assert "twins" not in machine.restore(chunked, tmp_path / "new")


def redirected(
    machine: Machine, repository: Handmade, redirection: str, *arguments: str | Path
) -> subprocess.CompletedProcess[bytes]:
    """Run the script with its standard streams elsewhere."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *machine.command(repository, *arguments)],
        env=machine.environment,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"], ids=["full", "closed"])
@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=["list", "help"])
def test_what_cannot_be_printed_is_one_error_of_the_script(
    machine: Machine, repository: Handmade, redirection: str, arguments: list[str]
) -> None:
    result = redirected(machine, repository, redirection, *arguments)
    assert result.returncode == 1
    said = b"restore.sh: standard output cannot be written. Is it full, or closed?\n"
    assert result.stderr == said


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-", ">&- 2>&-"], ids=ascii)
def test_a_disk_that_cannot_be_written_to_standard_output_is_not_restored(
    machine: Machine, repository: Handmade, redirection: str
) -> None:
    result = redirected(machine, repository, redirection, REV, "vda", "-")
    assert result.returncode == 1
    assert "2>" in redirection or b"is not the disk: do not use it" in result.stderr


@pytest.mark.parametrize(
    "redirection", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1"], ids=ascii
)
def test_a_restore_to_a_file_needs_no_standard_stream(
    machine: Machine, repository: Handmade, tmp_path: Path, redirection: str
) -> None:
    target = tmp_path / "disk.img"
    assert redirected(machine, repository, redirection, REV, "vda", target).returncode == 0
    assert target.read_bytes() == VDA


def test_what_is_refused_is_refused_where_nobody_can_hear_why(
    machine: Machine, repository: Handmade, tmp_path: Path
) -> None:
    target = tmp_path / "disk.img"
    repository.add("20261125T004938Z-x7k3", {"vda": VDA})
    if repository.store == "chunks":
        repository.index_twin("20261125T004938Z-x7k3", "vda").write_bytes(b"short")
    for file in repository.path.glob("revisions/20261125*/vda.*"):
        file.write_bytes(b"short")
    for redirection in ("2>/dev/full", "2>&-"):
        result = redirected(machine, repository, redirection, "20261125", "vda", target)
        assert result.returncode == 1
        assert not target.exists() or not target.read_bytes()
    assert redirected(machine, repository, "2>/dev/full", "x", "y").returncode == 2
