"""backy tag, remove, undo and purge: what changes a history, and how it is taken back."""

import itertools
from pathlib import Path

import pytest

from tests.cli.runner import SMALL, Backy, data, image, refusal, tree
from tests.lab.losses import lose


def tags(backy: Backy) -> list[list[str]]:
    return [backy.said_of("vm1", revision)["tags"] for revision in backy.revisions("vm1")]


ORDERS = list(itertools.permutations([("vm1",), ("+report",), ("-daily",), ("-r", "first")]))


@pytest.mark.parametrize("order", ORDERS[::6], ids=lambda order: " ".join(itertools.chain(*order)))
def test_tags_and_options_may_come_in_any_order(
    aged: Backy, order: tuple[tuple[str, ...], ...]
) -> None:
    aged.quiet("tag", *itertools.chain(*order))
    assert tags(aged) == [["report"], ["upgrade"], ["daily"]]


@pytest.mark.parametrize("tag", ["report", "help", "a:b@c-d_1.2"])
def test_a_tag_with_the_letters_of_an_option_is_dropped_like_any_other(
    aged: Backy, tag: str
) -> None:
    aged.quiet("tag", "vm1", f"+{tag}", f"+{tag}2", "--json")
    aged.quiet("tag", "vm1", f"-{tag}")
    assert tag not in tags(aged)[-1]
    assert f"{tag}2" in tags(aged)[-1]


def test_the_newest_revision_is_tagged_unless_another_is_named(aged: Backy) -> None:
    said = aged.quiet("tag", "vm1", "+manual:before-upgrade").out
    assert said == f"vm1: {aged.revisions('vm1')[-1]}: daily, manual:before-upgrade\n"
    assert tags(aged) == [["daily"], ["upgrade"], ["daily", "manual:before-upgrade"]]


def test_several_revisions_can_be_tagged_at_once(aged: Backy) -> None:
    aged.quiet("tag", "vm1", "--revision", "all", "+kept", "-daily")
    assert tags(aged) == [["kept"], ["kept", "upgrade"], ["kept"]]


def test_to_drop_a_tag_that_is_not_there_is_fine(aged: Backy) -> None:
    aged.quiet("tag", "vm1", "-none")
    assert tags(aged) == [["daily"], ["upgrade"], ["daily"]]


@pytest.mark.parametrize("mark", ["-", "+two words", "+a/b", "+a..b", "+" + "x" * 65])
def test_an_impossible_tag_is_refused_and_nothing_is_tagged(aged: Backy, mark: str) -> None:
    said = aged.refuses(2, "tag", "vm1", "+fine", mark)
    assert repr(mark[1:] or mark) in said.message
    assert tags(aged) == [["daily"], ["upgrade"], ["daily"]]


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["tag", "vm1"], id="tag-without-a-tag"),
        pytest.param(["tag", "vm1", "daily"], id="tag-without-a-sign"),
        pytest.param(["tag", "vm1", "+a", "-r"], id="tag-without-a-word"),
        pytest.param(["tag", "vm1", "+a", "--wrong"], id="tag-with-a-wrong-option"),
        pytest.param(["remove", "vm1"], id="remove-without-a-word"),
        pytest.param(["purge"], id="purge-without-a-job"),
        pytest.param(["wrong", "vm1"], id="unknown-command"),
    ],
)
def test_wrong_usage_ends_with_2_and_changes_nothing(aged: Backy, arguments: list[str]) -> None:
    before = tree(aged.base)
    result = aged.run(*arguments)
    assert result.code == 2
    assert refusal(result, 2).hint
    assert tree(aged.base) == before


def test_what_was_removed_can_be_brought_back(either: Backy, tmp_path: Path) -> None:
    for seed in (1, 2):
        either.backup("vm1", image(tmp_path / "vm1.img", SMALL[seed]))
    old, new = either.revisions("vm1")
    said = either.quiet("remove", "vm1", "-r", "first").out
    assert said == f"vm1: removed {old}; backy undo vm1 brings them back\n"
    assert either.revisions("vm1") == [new]
    assert either.content("vm1") == SMALL[2]
    either.quiet("undo", "vm1")
    assert either.revisions("vm1") == [old, new]
    assert either.content("vm1", 1) == SMALL[1]
    either.quiet("verify", "vm1")


def test_the_last_removal_is_undone_first(aged: Backy) -> None:
    old, middle, new = aged.revisions("vm1")
    aged.quiet("remove", "vm1", "-r", middle)
    aged.quiet("remove", "vm1", "-r", "all")
    assert aged.revisions("vm1") == []
    aged.quiet("undo", "vm1")
    assert aged.revisions("vm1") == [old, new]
    aged.quiet("undo", "vm1")
    assert aged.revisions("vm1") == [old, middle, new]


def test_an_empty_trash_cannot_be_undone(aged: Backy) -> None:
    said = aged.refuses(9, "undo", "vm1")
    assert said.message == "vm1: the trash is empty"


def test_a_revision_cannot_be_removed_twice(aged: Backy) -> None:
    old = aged.revisions("vm1")[0]
    aged.quiet("remove", "vm1", "-r", old)
    assert old in aged.refuses(9, "remove", "vm1", "-r", old).message


def test_removing_frees_nothing_and_purging_frees_what_only_the_removed_had(aged: Backy) -> None:
    old, middle, _ = aged.revisions("vm1")
    before = set(tree(aged.base / "vm1" / "chunks"))
    aged.quiet("remove", "vm1", "-r", f"{old}, {middle}")
    assert set(tree(aged.base / "vm1" / "chunks")) == before
    record = aged.quiet("purge", "vm1", "--json").record()
    assert set(record["purged"]) == {old, middle}
    assert record["freed"] > 300_000
    assert not aged.chunks_of("vm1") - aged.chunks_named("vm1")
    assert aged.content("vm1") == SMALL[3]
    aged.quiet("verify", "vm1")
    assert "cannot be undone" in aged.refuses(9, "undo", "vm1").hint


def test_purging_frees_the_space_of_plain_images(plain: Backy, tmp_path: Path) -> None:
    for seed in (1, 2):
        plain.backup("vm1", image(tmp_path / "vm1.img", data(seed)))
    plain.quiet("remove", "vm1", "-r", "first")
    folder = plain.base / "vm1"
    before = len(list(folder.rglob("vda.img")))
    plain.quiet("purge", "vm1")
    assert (before, len(list(folder.rglob("vda.img")))) == (2, 1)
    assert plain.content("vm1") == data(2)


def test_a_purge_leaves_what_was_removed_lately(aged: Backy) -> None:
    aged.quiet("remove", "vm1", "-r", "first")
    said = aged.quiet("purge", "vm1", "--older-than", "7d").out
    assert "purged 0 revisions" in said
    assert "1 kept" in said
    aged.quiet("undo", "vm1")
    assert len(aged.revisions("vm1")) == 3
    aged.quiet("verify", "vm1")


def test_a_purge_drops_what_failed_backups_left(aged: Backy) -> None:
    left = aged.base / "vm1" / "chunks" / "ab" / ("ab" * 32 + ".zst")
    left.parent.mkdir(exist_ok=True)
    left.write_bytes(bytes(1000))
    assert aged.quiet("purge", "vm1", "--json").record()["freed"] == 1000
    assert not left.exists()


def test_a_purge_that_cannot_tell_what_is_in_use_drops_no_chunk(aged: Backy) -> None:
    old, middle, new = aged.revisions("vm1")
    aged.quiet("remove", "vm1", "-r", old)
    aged.lose_index("vm1", middle)
    before = aged.chunks_of("vm1")
    result = aged.run("purge", "vm1")
    said = refusal(result, 6)
    assert middle in said.message
    assert "backy verify vm1" in said.hint
    assert result.out == "vm1: purged 1 revision, freed 0 B of chunks and pages\n"
    assert aged.chunks_of("vm1") == before
    assert aged.revisions("vm1") == [middle, new]


def test_a_purge_tells_programs_what_it_could_not_read(aged: Backy) -> None:
    middle = aged.revisions("vm1")[1]
    aged.lose_index("vm1", middle)
    result = aged.run("purge", "vm1", "--json")
    assert [middle in text for text in result.record()["unknown"]] == [True]
    assert result.error()["exit_code"] == result.code == 6


def test_what_a_purge_could_not_rule_out_is_freed_when_the_damaged_revision_is_gone(
    aged: Backy,
) -> None:
    old, middle, new = aged.revisions("vm1")
    aged.lose_index("vm1", middle)
    aged.quiet("remove", "vm1", "-r", old)
    assert aged.run("purge", "vm1").code == 6
    aged.quiet("remove", "vm1", "-r", middle)
    aged.quiet("purge", "vm1")
    assert aged.chunks_of("vm1") == aged.chunks_named("vm1")
    assert aged.revisions("vm1") == [new]


@pytest.mark.parametrize("what", ["index", "page"])
def test_a_purge_keeps_all_blocks_of_an_only_revision_whose_index_or_page_is_lost(
    backy: Backy, tmp_path: Path, what: str
) -> None:
    revision = backy.backup("vm1", image(tmp_path / "vm1.img", SMALL[1]))
    before = backy.chunks_of("vm1")
    if what == "index":
        backy.lose_index("vm1", revision)
    else:
        lose(backy.pages("vm1", revision)[0])
    assert backy.run("purge", "vm1").code == 6
    assert backy.chunks_of("vm1") == before
    assert backy.revisions("vm1") == [revision]


@pytest.mark.parametrize("text", ["week", "-1d", ""])
def test_an_impossible_duration_is_refused(aged: Backy, text: str) -> None:
    said = aged.refuses(2, "purge", "vm1", f"--older-than={text}")
    assert repr(text) in said.message


def test_the_last_revision_can_be_removed_and_the_next_backup_begins_anew(
    aged: Backy, tmp_path: Path
) -> None:
    aged.quiet("remove", "vm1", "-r", "all")
    aged.quiet("purge", "vm1")
    assert aged.chunks_of("vm1") == set()
    aged.backup("vm1", image(tmp_path / "vm1.img", SMALL[1]))
    assert aged.content("vm1") == SMALL[1]
