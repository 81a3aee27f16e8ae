"""backy restore of damaged blocks: what any good copy has comes back, and the rest is never hidden.

The names of lost ranges are those of what is zero in the target, no more and no less.
"""

import os
import subprocess
from pathlib import Path

import pytest

from backy.units import counted
from tests.cli.machine import ext4
from tests.cli.runner import MIB, Backy, Result, data, environment, image, overwrite, refusal
from tests.lab.devices import loop_device
from tests.lab.volumes import Mounts

DISK = data(1, 5 * MIB) + bytes(MIB) + data(2, 5000)  # blocks 0 to 4, a zero block, a short one
LAST = 6
Blocks = tuple[int, ...]


def damage(backy: Backy, *blocks: int, back: int = 0) -> None:
    """Flip a bit in each of these blocks of a revision so many steps before the newest."""
    revision = backy.revisions("vm1")[-1 - back]
    for block in blocks:
        if backy.store == "images":
            path, offset = backy.base / "vm1" / "revisions" / revision / "vda.img", block * MIB + 7
        else:
            path, offset = backy.chunk("vm1", revision, block), 100
        with path.open("r+b") as file:
            [byte] = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)
            os.fsync(file.fileno())


def without(content: bytes, *blocks: int) -> bytes:
    """The disk with zeroes for these blocks."""
    kept = bytearray(content)
    for block in blocks:
        length = len(content[block * MIB : (block + 1) * MIB])
        kept[block * MIB : block * MIB + length] = bytes(length)
    return bytes(kept)


def ranges(*blocks: int) -> list[list[int]]:
    """What these blocks are in bytes, as (start, length); neighbours are one."""
    found: list[list[int]] = []
    for block in blocks:
        start, length = block * MIB, min(MIB, len(DISK) - block * MIB)
        if found and sum(found[-1]) == start:
            found[-1][1] += length
        else:
            found.append([start, length])
    return found


def says_lost(result: Result, *blocks: int) -> bool:
    """Whether it names the ranges of these blocks, and no other, as lost."""
    named = [line for line in result.err.splitlines() if "are lost;" in line]
    return [line.partition("bytes ")[2] for line in named] == [
        f"{start} to {start + length} are lost; the target has zeroes there"
        for start, length in ranges(*blocks)
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return image(tmp_path / "vm1.img", DISK)


@pytest.fixture(scope="session")
def first_orphans(tmp_path_factory: pytest.TempPathFactory, mounts: Mounts) -> dict[str, Backy]:
    """What `orphan` copies."""
    folder = tmp_path_factory.mktemp("orphans")
    source = image(folder / "vm1.img", DISK)
    made = {
        "chunks": Backy(folder / "backups", "chunks"),
        "images": Backy(mounts["xfs"] / "orphans", "images"),
    }
    for backy in made.values():
        backy.backup("vm1", source)
    source.unlink()
    return made


@pytest.fixture
def orphan(first_orphans: dict[str, Backy], either: Backy) -> Backy:
    """One revision, whose source is gone."""
    first = first_orphans[either.store].base
    command = ["cp", "--archive", "--reflink=auto", str(first), str(either.base)]
    subprocess.run(command, check=True)
    return either


CASES = pytest.mark.parametrize(
    "blocks",
    [
        pytest.param((0, 2, 3, LAST), id="some"),
        pytest.param((0, 1, 2, 3, 4, LAST), id="all"),
    ],
)


@CASES
def test_a_new_file_has_all_that_is_good_and_zeroes_for_the_rest(
    orphan: Backy, tmp_path: Path, blocks: Blocks
) -> None:
    damage(orphan, *blocks)
    target = tmp_path / "new.img"
    result = orphan.run("restore", "vm1", target, "--keep-going")
    assert target.read_bytes() == without(DISK, *blocks)
    assert says_lost(result, *blocks)
    [revision] = orphan.revisions("vm1")
    said = refusal(result, 6)
    lost = len(ranges(*blocks))
    assert said.message == f"vm1: {revision} vda: {counted(lost, 'range is', 'ranges are')} lost"
    assert str(target) in said.hint


@pytest.mark.parametrize("length", [MIB, len(DISK) + MIB], ids=["shorter", "longer"])
def test_nothing_of_what_an_existing_file_had_is_left_where_a_block_is_lost(
    orphan: Backy, tmp_path: Path, length: int
) -> None:
    damage(orphan, 1, LAST)
    target = image(tmp_path / "old.img", data(9, length))
    refusal(orphan.run("restore", "vm1", target, "--keep-going", "--overwrite"), 6)
    assert target.read_bytes() == without(DISK, 1, LAST)


def test_nothing_of_what_a_block_device_had_is_left_where_a_block_is_lost(
    orphan: Backy, tmp_path: Path
) -> None:
    damage(orphan, 1, LAST)
    old = data(9, len(DISK) // 512 * 512 + 4096)
    with loop_device(image(tmp_path / "device", old)) as device:
        refusal(orphan.run("restore", "vm1", device, "--keep-going"), 6)
        assert device.read_bytes() == without(DISK, 1, LAST) + old[len(DISK) :]


def test_standard_output_gets_zeroes_for_what_is_lost_and_not_a_byte_else(orphan: Backy) -> None:
    damage(orphan, 1, LAST)
    command = orphan.command("restore", "vm1", "-", "--keep-going")
    done = subprocess.run(command, env=environment(), capture_output=True, check=False)
    assert done.stdout == without(DISK, 1, LAST)
    assert says_lost(Result(done.returncode, "", done.stderr.decode()), 1, LAST)
    assert done.returncode == 6


def test_programs_are_told_the_lost_ranges(orphan: Backy, tmp_path: Path) -> None:
    damage(orphan, 0, 3, LAST)
    result = orphan.run("restore", "vm1", tmp_path / "new.img", "--keep-going", "--json")
    [finished] = [each for each in result.records() if each["event"] == "finished"]
    assert finished["lost"] == ranges(0, 3, LAST)
    assert finished["healed"] == []
    assert (result.error()["exit_code"], result.code) == (6, 6)


def test_a_disk_without_damage_is_restored_as_ever(orphan: Backy, tmp_path: Path) -> None:
    orphan.quiet("restore", "vm1", tmp_path / "new.img", "--keep-going")
    assert (tmp_path / "new.img").read_bytes() == DISK


def test_without_it_a_lost_block_leaves_what_could_be_restored_under_another_name(
    orphan: Backy, tmp_path: Path
) -> None:
    damage(orphan, LAST)
    said = orphan.refuses(6, "restore", "vm1", tmp_path / "new.img")
    assert orphan.revisions("vm1")[0] in said.message
    assert "--keep-going" in said.hint
    assert f"delete {tmp_path}/.new.img.partial to give up" in said.hint
    assert not (tmp_path / "new.img").exists()
    refusal(orphan.run("restore", "vm1", tmp_path / "new.img", "--keep-going"), 6)
    assert [each.name for each in tmp_path.iterdir() if "new.img" in each.name] == ["new.img"]


def test_what_was_lost_is_recorded_in_the_revision_and_in_a_report(
    orphan: Backy, tmp_path: Path
) -> None:
    damage(orphan, 1)
    refusal(orphan.run("restore", "vm1", tmp_path / "new.img", "--keep-going"), 6)
    [revision] = orphan.revisions("vm1")
    record = orphan.said_of("vm1", revision)
    assert (record["trust"], record["damaged"]) == ("distrusted", {"vda": ranges(1)})
    [report] = orphan.ok("reports", "vm1", "--json").record()["reports"]
    assert (report["verb"], report["healed"]) == ("restore", None)
    assert report["revisions"] == [revision]
    [kept] = report["files"]
    assert Path(kept).stat().st_size > 0


def test_the_live_source_gives_back_what_is_damaged_and_heals_the_store(
    either: Backy, source: Path, tmp_path: Path
) -> None:
    revision = either.backup("vm1", source)
    damage(either, 0, LAST)
    result = either.ok("restore", "vm1", tmp_path / "new.img")
    assert (tmp_path / "new.img").read_bytes() == DISK
    for start, length in ranges(0, LAST):
        assert f"bytes {start} to {start + length} were damaged; a good copy was used" in result.err
    assert either.content("vm1") == DISK
    assert either.said_of("vm1", revision)["trust"] == "trusted"
    reports = either.ok("reports", "vm1", "--json").record()["reports"]
    assert [each["healed"] for each in reports] == ["the source"] * 2
    source.unlink()
    either.quiet("verify", "vm1")


def test_what_the_source_has_changed_since_cannot_come_from_it(
    either: Backy, source: Path, tmp_path: Path
) -> None:
    either.backup("vm1", source)
    damage(either, 0, 2)
    overwrite(source, 2 * MIB + 5, b"a later change")
    result = either.run("restore", "vm1", tmp_path / "new.img", "--keep-going", "--json")
    assert (tmp_path / "new.img").read_bytes() == without(DISK, 2)
    [finished] = [each for each in result.records() if each["event"] == "finished"]
    assert (finished["lost"], finished["healed"]) == (ranges(2), ranges(0))
    assert result.code == 6


def test_another_revision_gives_back_what_is_damaged_in_a_plain_image(
    plain: Backy, source: Path, tmp_path: Path
) -> None:
    older = plain.backup("vm1", source)
    overwrite(source, 0, b"changed")
    content = source.read_bytes()
    plain.backup("vm1", source)
    source.unlink()
    damage(plain, 1, 3)
    plain.ok("restore", "vm1", tmp_path / "new.img")
    assert (tmp_path / "new.img").read_bytes() == content
    assert plain.content("vm1") == content
    reports = plain.ok("reports", "vm1", "--json").record()["reports"]
    assert [each["healed"] for each in reports] == [f"revision {older}"] * 2
    plain.quiet("verify", "vm1")


def test_what_only_one_plain_image_has_is_lost_with_it_and_the_others_are_whole(
    plain: Backy, source: Path, tmp_path: Path
) -> None:
    plain.backup("vm1", source)
    overwrite(source, 0, b"changed")
    plain.backup("vm1", source)
    source.unlink()
    damage(plain, 0, 1)
    result = plain.run("restore", "vm1", tmp_path / "new.img", "--keep-going")
    assert says_lost(result, 0)
    assert result.code == 6
    plain.quiet("restore", "vm1", tmp_path / "old.img", "-r", "1")
    assert (tmp_path / "old.img").read_bytes() == DISK


def test_a_disk_without_its_index_is_refused_and_nothing_else_is_promised(
    orphan: Backy, tmp_path: Path
) -> None:
    [revision] = orphan.revisions("vm1")
    orphan.lose_index("vm1", revision)
    said = orphan.refuses(6, "restore", "vm1", tmp_path / "new.img", "--keep-going")
    assert "vda.blocks" in said.message
    assert "--keep-going" not in said.hint
    assert not (tmp_path / "new.img").exists()


def _remounted(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def check_read_only(backy: Backy, mounted: Path, tmp_path: Path) -> None:
    """The source makes up for what is damaged; without it, what is lost is named."""
    source = image(tmp_path / "vm1.img", DISK)
    backy.backup("vm1", source)
    damage(backy, 0, LAST)
    _remounted(mounted, "ro")
    result = backy.ok("restore", "vm1", tmp_path / "new.img")
    assert (tmp_path / "new.img").read_bytes() == DISK
    assert "no report was kept" in result.err
    assert "healing failed" in result.err
    source.unlink()
    result = backy.run("restore", "vm1", tmp_path / "part.img", "--keep-going")
    assert (tmp_path / "part.img").read_bytes() == without(DISK, 0, LAST)
    assert says_lost(result, 0, LAST)
    assert result.code == 6


def test_a_damaged_disk_comes_back_from_a_read_only_file_system_with_chunks(
    tmp_path: Path,
) -> None:
    with ext4(tmp_path, 64 * MIB) as mounted:
        check_read_only(Backy(mounted / "backups"), mounted, tmp_path)


def test_a_damaged_disk_comes_back_from_a_read_only_file_system_with_images(
    alone: Backy, tmp_path: Path
) -> None:
    check_read_only(alone, alone.base.parent, tmp_path)


@pytest.mark.parametrize(
    "command", [["restore", "vm1", "new.img"], ["verify", "vm1"], ["scrub", "vm1"]], ids=str
)
def test_the_source_that_could_not_be_asked_is_named_with_the_reason(
    orphan: Backy, first_orphans: dict[str, Backy], tmp_path: Path, command: list[str]
) -> None:
    source = first_orphans["chunks"].base.parent / "vm1.img"
    damage(orphan, 1, 3)
    why = f"The source could not be asked: opening the source {source}: No such file or directory"
    arguments = [str(tmp_path / each) if each == "new.img" else each for each in command]
    said = orphan.refuses(6, *arguments)
    assert said.hint.startswith(f"{why}. ")
    assert said.before.count(f"vm1: warning: {why}\n") == 1
