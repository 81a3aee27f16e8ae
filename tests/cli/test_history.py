"""backy list, diff and find: they only look, and they tell programs and people alike."""

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.runner import MIB, SMALL, Backy, data, image, overwrite, tree


def test_all_jobs_are_listed_with_their_newest_revision(aged: Backy, tmp_path: Path) -> None:
    aged.backup("größe", image(tmp_path / "other.img", data(1)))
    (aged.base / "no repository").mkdir()
    head, *lines = aged.quiet("list").out.splitlines()
    assert head.split()[:3] == ["job", "store", "revisions"]
    assert [line.split()[:3] for line in lines] == [
        ["größe", "chunks", "1"],
        ["vm1", "chunks", "3"],
    ]
    assert lines[0].endswith("3.0 MiB")
    assert lines[1].endswith("195.3 KiB")


def test_no_jobs_are_an_empty_list(backy: Backy) -> None:
    backy.quiet("init")
    assert len(backy.ok("list").out.splitlines()) == 1
    assert backy.ok("list", "--json").record()["jobs"] == []


def test_the_revisions_of_a_job_are_listed_with_the_oldest_first(aged: Backy) -> None:
    _, *lines = aged.quiet("list", "vm1").out.splitlines()
    assert [line.split()[0] for line in lines] == aged.revisions("vm1")
    assert [line.split()[-1] for line in lines] == ["daily", "upgrade", "daily"]
    assert all("195.3 KiB" in line and "trusted" in line for line in lines)


def test_nothing_but_what_is_published_is_listed(aged: Backy) -> None:
    revisions = aged.base / "vm1" / "revisions"
    shutil.copytree(revisions / aged.revisions("vm1")[0], revisions / ".20200101T000000Z-aaaa")
    (revisions / "lost+found").mkdir()
    record = aged.quiet("list", "vm1", "--json").record()
    ids = [revision["id"] for revision in record["jobs"][0]["revisions"]]
    assert ids == [each for each in aged.revisions("vm1") if each != "lost+found"]


def test_a_damaged_revision_is_named_and_hides_no_other(aged: Backy) -> None:
    old, middle, new = aged.revisions("vm1")
    (aged.base / "vm1" / "revisions" / middle / "revision.json").write_text("{")
    result = aged.ok("list", "vm1")
    assert [line.split()[0] for line in result.out.splitlines()[1:]] == [old, new]
    assert "vm1: warning: " in result.err
    assert middle in result.err


def test_one_broken_repository_does_not_hide_the_other_jobs(aged: Backy) -> None:
    shutil.copytree(aged.base / "vm1", aged.base / "vm2")
    (aged.base / "vm1" / "repository.json").write_text("{")
    result = aged.run("list")
    assert "vm2 " in result.out
    assert "vm1/repository.json" in result.err


def test_looking_changes_nothing(aged: Backy) -> None:
    before = tree(aged.base)
    for command in (["list"], ["list", "vm1"], ["diff", "vm1", "2", "0"], ["find", "vm1"]):
        aged.quiet(*command)
    assert tree(aged.base) == before


def test_a_diff_gives_the_ranges_that_changed_in_whole_blocks(
    either: Backy, tmp_path: Path
) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    either.backup("vm1", source)
    overwrite(source, MIB + 5, b"changed")
    overwrite(source, 3 * MIB, bytes(5000))
    either.backup("vm1", source)
    said = either.quiet("diff", "vm1", "1", "latest").out
    assert [line.split() for line in said.splitlines()] == [
        ["disk", "start", "length", "kind"],
        ["vda", str(MIB), str(MIB), "data"],
        ["vda", str(3 * MIB), "5000", "zero"],
    ]


def test_equal_revisions_have_no_differences(aged: Backy) -> None:
    record = aged.quiet("diff", "vm1", "latest", "0", "--json").record()
    assert record["extents"] == []
    assert record["old"] == record["new"] == aged.revisions("vm1")[-1]


def test_a_diff_tells_of_disks_that_came(two_disks: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "new.img", SMALL[3])
    two_disks.backup("vm1", f"vdc={source}")
    record = two_disks.quiet("diff", "vm1", "first", "latest", "--json").record()
    assert record["extents"] == [{"disk": "vdc", "start": 0, "length": 200000, "kind": "data"}]


def test_find_names_the_plain_image(plain: Backy, tmp_path: Path) -> None:
    revision = plain.backup("vm1", image(tmp_path / "vm1.img", SMALL[1]))
    path = plain.quiet("find", "vm1").out.removesuffix("\n")
    assert path == f"{plain.base}/vm1/revisions/{revision}/vda.img"
    assert Path(path).read_bytes() == SMALL[1]


def test_find_names_the_index_where_there_are_chunks(two_disks: Backy) -> None:
    (revision,) = two_disks.revisions("vm1")
    path = two_disks.quiet("find", "vm1", "--disk", "vdb").out.removesuffix("\n")
    assert path == f"{two_disks.base}/vm1/revisions/{revision}/vdb.blocks"
    assert len(Path(path).read_bytes()) == 65


def test_find_gives_a_path_from_the_root_also_for_a_relative_base(
    aged: Backy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(aged.base.parent)
    path = Backy(Path(aged.base.name)).quiet("find", "vm1").out.removesuffix("\n")
    assert Path(path).is_absolute()
    assert Path(path).exists()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(["find", "vm1", "-r", "tag:none"], id="find"),
        pytest.param(["restore", "vm1", "x.img", "-r", "tag:none"], id="restore"),
        pytest.param(["tag", "vm1", "+new", "-r", "tag:none"], id="tag"),
        pytest.param(["remove", "vm1", "-r", "tag:none"], id="remove"),
        pytest.param(["diff", "vm1", "tag:none", "latest"], id="diff"),
    ],
)
def test_a_word_that_names_no_revision_is_quoted(aged: Backy, command: list[str]) -> None:
    said = aged.refuses(9, *command)
    assert "vm1: 'tag:none' names no revision" in said.message


def test_a_word_that_names_several_is_refused_with_their_ids(aged: Backy) -> None:
    said = aged.refuses(9, "find", "vm1", "-r", "tag:daily")
    old, _, new = aged.revisions("vm1")
    assert old in said.message
    assert new in said.message
    assert said.hint == 'Write "last(tag:daily)".'


def test_an_unknown_word_shows_what_is_there(aged: Backy) -> None:
    said = aged.refuses(9, "find", "vm1", "-r", "weekly")
    assert said.message == "vm1: 'weekly' names no revision"
    assert all(revision in said.hint for revision in aged.revisions("vm1"))
    assert "tag:upgrade" in said.hint


COMMANDS = [
    ["list", "vm2"],
    ["diff", "vm2", "1", "0"],
    ["find", "vm2"],
    ["restore", "vm2", "x.img"],
    ["verify", "vm2"],
    ["tag", "vm2", "+new"],
    ["remove", "vm2", "-r", "all"],
    ["undo", "vm2"],
    ["purge", "vm2"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: str(command[0]))
def test_an_unknown_job_is_refused_and_the_known_ones_are_listed(
    aged: Backy, command: list[str]
) -> None:
    before = tree(aged.base)
    said = aged.refuses(9, *command)
    assert "vm2" in said.message
    assert "vm1" in said.hint
    assert tree(aged.base) == before
    assert not (aged.base / "vm2").exists()


def test_a_revision_is_listed_as_it_is_on_disk(aged: Backy) -> None:
    (job,) = aged.quiet("list", "vm1", "--json").record()["jobs"]
    folder = aged.base / "vm1" / "revisions"
    for revision in job["revisions"]:
        stored = json.loads((folder / revision["id"] / "revision.json").read_text())
        assert stored == {"format": 1} | revision


@pytest.mark.parametrize("count", [3, 4, 30])
def test_many_revisions_are_counted_and_not_listed(
    backy: Backy, tmp_path: Path, count: int
) -> None:
    source = image(tmp_path / "vm1.img", b"disk")
    for _ in range(2):
        backy.backup("vm1", source)
    _, other = backy.revisions("vm1")
    folder = backy.base / "vm1" / "revisions"
    for number in range(count - 2):
        made = f"{other[:-4]}{number:04}"
        shutil.copytree(folder / other, folder / made)
        record = folder / made / "revision.json"
        record.write_text(record.read_text().replace(other, made))
    ids = backy.revisions("vm1")
    assert len(ids) == count
    what = ", ".join(ids) if count == 3 else f"{count} revisions, {ids[0]} to {ids[-1]}"
    said = backy.quiet("remove", "vm1", "-r", "all").out
    assert said == f"vm1: removed {what}; backy undo vm1 brings them back\n"
    assert backy.quiet("undo", "vm1").out == f"vm1: restored {what}; back in the history\n"
    assert len(backy.quiet("remove", "vm1", "-r", "all", "--json").record()["removed"]) == count
    backy.ok("undo", "vm1")
    lines = backy.quiet("remove", "vm1", "-r", "all", "-v").out.splitlines()
    assert lines == [*(f"vm1: {each}" for each in ids), said.rstrip()]
