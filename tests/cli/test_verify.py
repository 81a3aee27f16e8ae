"""backy verify: every stored byte is read, and every damaged range is named."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from backy.units import format_size
from tests.cli.runner import MIB, SMALL, Backy, data, image, overwrite, refusal

Damager = Callable[[Path], None]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


DAMAGES = pytest.mark.parametrize(
    "damage",
    [
        pytest.param(Path.unlink, id="missing"),
        pytest.param(cut_short, id="cut-short"),
        pytest.param(flip_a_bit, id="flipped-bit"),
        pytest.param(lengthen, id="longer"),
    ],
)


def test_a_sound_history_is_verified_and_says_so_from_then_on(
    either: Backy, tmp_path: Path
) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    either.backup("vm1", source)
    overwrite(source, 0, b"changed")
    either.backup("vm1", source)
    said = either.quiet("verify", "vm1").out
    # Both copies of two indexes of one line, and of two pages of four.
    pages = re.escape(format_size(2 * 2 * (1 + 4) * 65))
    pattern = rf"vm1: 2 revisions, 6\.0 MiB verified, {pages} of indexes and pages, \d.\d s, .+/s\n"
    assert re.fullmatch(pattern, said)
    for revision in either.revisions("vm1"):
        assert either.said_of("vm1", revision)["trust"] == "verified"
        assert either.said_of("vm1", revision)["verified"]


def test_only_the_revisions_that_were_asked_for_are_verified(aged: Backy) -> None:
    aged.quiet("verify", "vm1", "-r", "tag:upgrade")
    trust = [aged.said_of("vm1", revision)["trust"] for revision in aged.revisions("vm1")]
    assert trust == ["trusted", "verified", "trusted"]


@DAMAGES
def test_a_damaged_chunk_is_named_with_each_revision_that_has_it(
    backy: Backy, tmp_path: Path, damage: Damager
) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    old = backy.backup("vm1", source)
    overwrite(source, 0, b"changed")
    new = backy.backup("vm1", source)
    source.unlink()
    chunk = backy.chunk("vm1", old, 1)
    damage(chunk)
    said = backy.refuses(6, "verify", "vm1")
    assert said.message == "vm1: 2 damaged ranges in 2 revisions"
    for revision in (old, new):
        assert f"damaged: {revision} vda bytes {MIB} to {2 * MIB}: " in said.before
        assert backy.said_of("vm1", revision)["trust"] == "distrusted"


def test_it_never_stops_at_the_first_damage(backy: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    revision = backy.backup("vm1", source)
    source.unlink()
    for block in (0, 2, 3):
        backy.chunk("vm1", revision, block).unlink()
    said = backy.refuses(6, "verify", "vm1")
    assert f"bytes 0 to {MIB}:" in said.before
    assert f"bytes {2 * MIB} to {3 * MIB + 5000}:" in said.before


def test_a_damage_in_one_revision_leaves_the_others_trusted(aged: Backy) -> None:
    old, middle, new = aged.revisions("vm1")
    aged.chunk("vm1", middle, 0).unlink()  # the source has something else there by now
    said = aged.refuses(6, "verify", "vm1")
    assert said.message == "vm1: 1 damaged range in 3 revisions"
    trust = [aged.said_of("vm1", each)["trust"] for each in (old, middle, new)]
    assert trust == ["verified", "distrusted", "verified"]


def test_a_damaged_plain_image_is_named_with_the_range(plain: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    plain.backup("vm1", source)
    overwrite(source, 2 * MIB, b"changed")
    revision = plain.backup("vm1", source)
    source.unlink()
    path = plain.base / "vm1" / "revisions" / revision / "vda.img"
    path.chmod(0o600)
    overwrite(path, 2 * MIB + 1, b"\0")
    said = plain.refuses(6, "verify", "vm1")
    assert f"damaged: {revision} vda bytes {2 * MIB} to {3 * MIB}: " in said.before
    assert said.before.count("damaged:") == 1
    assert plain.content("vm1", 1) == data(1)


def test_a_damaged_block_comes_back_from_the_source_and_that_is_said(
    either: Backy, tmp_path: Path
) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    revision = either.backup("vm1", source)
    either.damage("vm1", revision, 1)
    result = either.ok("verify", "vm1")
    assert f"healed from the source: {revision} vda bytes {MIB} to {2 * MIB}: " in result.err
    assert " of indexes and pages, 1 damaged range healed, " in result.out
    assert either.content("vm1") == data(1)
    either.quiet("verify", "vm1")


@pytest.mark.parametrize("name", ["vda.blocks", "vda.img"])
def test_a_missing_file_damages_the_whole_disk(plain: Backy, tmp_path: Path, name: str) -> None:
    revision = plain.backup("vm1", image(tmp_path / "vm1.img", SMALL[1]))
    if name == "vda.img":
        (plain.base / "vm1" / "revisions" / revision / name).unlink()
    else:
        plain.lose_index("vm1", revision)
    said = plain.refuses(6, "verify", "vm1")
    assert f"damaged: {revision} vda bytes 0 to 200000: " in said.before


def test_an_unusable_revision_is_named_and_the_others_are_verified(aged: Backy) -> None:
    old, middle, new = aged.revisions("vm1")
    (aged.base / "vm1" / "revisions" / middle / "revision.json").write_text('{"format": 1')
    said = aged.refuses(6, "verify", "vm1")
    assert middle in said.before
    assert [aged.said_of("vm1", each)["trust"] for each in (old, new)] == ["verified"] * 2


def test_the_next_backup_stores_anew_what_was_found_damaged(backy: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    revision = backy.backup("vm1", source)
    source.rename(tmp_path / "away.img")
    backy.chunk("vm1", revision, 1).unlink()
    backy.refuses(6, "verify", "vm1")
    (tmp_path / "away.img").rename(source)
    assert "changed 1.0 MiB" in backy.ok("backup", "vm1").out
    assert backy.content("vm1") == data(1)
    backy.quiet("verify", "vm1")


def test_a_revision_word_that_names_nothing_is_no_proof(aged: Backy) -> None:
    said = refusal(aged.run("verify", "vm1", "-r", "tag:none"), 9)
    assert "'tag:none' names no revision" in said.message
