"""Sizes of pages are told; a page that is lost in both copies is named, healed, and gone around."""

from pathlib import Path

import pytest

from backy.units import format_size
from tests.cli.runner import SMALL, Backy, image
from tests.lab.indexes import turn_back
from tests.lab.losses import index_copies, lose

ONE = 2 * (65 + 65)  # bytes of an index of one line and its page of one line, both twice


def test_list_shows_what_was_written_for_pages(aged: Backy) -> None:
    head, *lines = aged.quiet("list", "vm1").out.splitlines()
    (job,) = aged.quiet("list", "vm1", "--json").record()["jobs"]
    start = head.index("pages")
    assert [line[start : head.index("took")].strip() for line in lines] == [
        format_size(each["disks"]["vda"]["pages"]) for each in job["revisions"]
    ]


@pytest.mark.parametrize("verb", ["verify", "scrub"])
def test_programs_are_told_how_much_of_pages_was_read_beside_the_data(
    either: Backy, tmp_path: Path, verb: str
) -> None:
    either.backup("vm1", image(tmp_path / "vm1.img", SMALL[1]))
    finished = either.quiet(verb, "vm1", "--json").last()
    assert finished["pages"] == ONE
    assert finished["size" if verb == "verify" else "read"] == len(SMALL[1])


@pytest.mark.parametrize("verb", ["verify", "scrub"])
def test_a_lost_page_comes_back_from_the_source_and_is_in_the_reports(
    backy: Backy, tmp_path: Path, verb: str
) -> None:
    revision = backy.backup("vm1", image(tmp_path / "vm1.img", SMALL[1]))
    [copies] = backy.pages("vm1", revision)
    lose(copies)
    result = backy.ok(verb, "vm1")
    assert f"healed from the source: {revision} vda bytes 0 to 200000: " in result.err
    assert ", 1 damaged range healed, " in result.out
    assert all(path.exists() for path in copies)
    [report] = backy.quiet("reports", "vm1", "--json").record()["reports"]
    assert (report["digest"], report["healed"]) == (copies[0].name, "the source")
    backy.quiet("verify", "vm1")


def test_a_page_that_cannot_be_healed_is_named_and_the_other_disk_is_whole(
    backy: Backy, tmp_path: Path
) -> None:
    source = image(tmp_path / "vdb.img", SMALL[2])
    revision = backy.backup(
        "vm1", f"vda={image(tmp_path / 'vda.img', SMALL[1])}", "--source", f"vdb={source}"
    )
    lose(backy.pages("vm1", revision, "vdb")[0])
    source.write_bytes(SMALL[3])
    said = backy.refuses(6, "restore", "vm1", tmp_path / "b.img", "--disk", "vdb")
    assert "bytes 0 to 200000: " in said.message
    backy.ok("restore", "vm1", tmp_path / "a.img", "--disk", "vda")
    assert (tmp_path / "a.img").read_bytes() == SMALL[1]
    backy.ok("backup", "vm1")
    assert backy.content("vm1", disk="vdb") == SMALL[3]


def test_a_bad_copy_of_an_index_or_page_is_replaced_with_a_warning(
    either: Backy, tmp_path: Path
) -> None:
    revision = either.backup("vm1", image(tmp_path / "vm1.img", SMALL[1]))
    folder = either.base / "vm1" / "revisions" / revision
    lost = [either.pages("vm1", revision)[0][0], index_copies(folder.parents[1], folder)[1]]
    lose(lost)
    said = either.ok("verify", "vm1").err
    assert all(f"{path} was damaged; its other copy was good" in said for path in lost)
    assert all(path.exists() for path in lost)
    either.quiet("verify", "vm1")


def test_a_repository_of_format_1_is_read_as_it_is_and_moves_with_a_word_at_the_next_backup(
    either: Backy, tmp_path: Path
) -> None:
    source = image(tmp_path / "vm1.img", SMALL[1])
    either.backup("vm1", source)
    root = either.base / "vm1"
    turn_back(root)
    before = (root / "repository.json").read_bytes()
    for command in ("list", "verify", "scrub", "purge"):
        either.ok(command, "vm1")
    either.quiet("restore", "vm1", tmp_path / "new.img")
    assert (tmp_path / "new.img").read_bytes() == SMALL[1]
    assert (root / "repository.json").read_bytes() == before
    first, second = (either.ok("backup", "vm1").err for _ in range(2))
    assert "versions of backy that know only format 1 refuse it" in first
    assert second == ""
    assert [either.said_of("vm1", each)["format"] for each in either.revisions("vm1")] == [1, 2, 2]
