"""A repository may be made by an enemy: every command ends, says why, and touches nothing else."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.conftest import BLOCK, copied
from tests.fuzz.mutate import Json, changed_tree, places, with_change
from tests.fuzz.sandbox import Child, Sandbox
from tests.fuzz.verbs import ALL, real, say
from tests.lab.handmade import digest_of
from tests.lab.paged import LINES, copies, text_of

CHANGING = "list verify backup remove undo purge delete"
USING = "diff restore keep-going verify scrub backup purge"


def test_every_command_works_where_nothing_is_hostile(hostile: Sandbox) -> None:
    for name in ALL:
        say(hostile, name)


# Names.

END = "99991231T235959Z-zzzz"


@pytest.mark.parametrize(
    "name", ["vm\n2", "\x1b[2J", "\udcff", "-rf", ".hidden", "x" * 200, "vm 2"], ids=ascii
)
@pytest.mark.parametrize("command", ["jobs-json", "reports", "scrub-all", "missing"])
def test_a_repository_of_any_name_in_the_base_directory_is_no_bug(
    hostile: Sandbox, name: str, command: str
) -> None:
    hostile.root.rename(hostile.base / name)
    arguments = {
        "scrub-all": ("scrub", "--json"),
        "missing": ("list", "vm3", "--json"),
    }.get(command) or ALL[command]
    before = hostile.backy(*arguments)
    assert before.code in {0, 3, 9}


ODD = ["00010101T000000Z-aaaa", "20261399T000000Z-aaaa", "a\nb", "\x1b[2J", "\udcff", ".odd"]
FOLDERS = [
    "revisions", "trash", "trash/@batch", "quarantine", "chunks", "chunks/@ab", "pages", "twins",
]  # fmt: skip


@pytest.mark.parametrize("names", [[END], ODD], ids=["last-time-there-is", "odd"])
@pytest.mark.parametrize("place", FOLDERS)
def test_a_folder_of_any_name_is_no_bug(hostile: Sandbox, place: str, names: list[str]) -> None:
    for name in names:
        path = hostile.root / real(hostile, place) / name
        path.mkdir()
        (path / "inside").touch()
    for command in CHANGING.split():
        say(hostile, command)


# What JSON and indexes say.

WAYS_OUT = [
    "../../../neighbour", "../../../neighbour/revisions", "../../../../neighbour/chunks",
    "../neighbour", "@neighbour", "@neighbour/revisions", "file://@neighbour",
]  # fmt: skip


@st.composite
def leading_out(draw: st.DrawFn, tree: Json, neighbour: str) -> Json:
    """A record in which one or two texts or keys lead to the neighbour, and perhaps more is odd."""
    for _ in range(draw(st.integers(1, 2))):
        way = draw(st.sampled_from(WAYS_OUT)).replace("@neighbour", neighbour)
        place = draw(st.sampled_from([each for each in places(tree) if each]))

        def replace(inside: Json, key: str | int, way: str = way) -> None:
            inside[key] = way

        def rename(inside: Json, key: str | int, way: str = way) -> None:
            if isinstance(inside, dict):
                inside[way] = inside.pop(key)

        tree = with_change(tree, place, draw(st.sampled_from([replace, rename])))
    if draw(st.booleans()):
        tree = draw(changed_tree(tree, [tree]))
    return tree


EXAMPLES = max(3, settings().max_examples // 16)
FILES = {
    "revision": ("revisions/@newest/revision.json", "list verify keep-going tag backup purge"),
    "removed": ("trash/@batch/@removed/revision.json", "backup purge undo verify"),
    "report": ("quarantine/@report/report.json", "reports show verify delete delete-healed"),
    "scrub": ("scrub.json", "scrub"),
    "restores": ("restores.json", "history restore"),
}


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=EXAMPLES)
@given(data=st.data())
def test_no_record_makes_backy_read_or_write_outside_its_repository(
    first_chunks: Path, child: Child, kind: str, data: st.DataObject
) -> None:
    place, commands = FILES[kind]
    with tempfile.TemporaryDirectory() as name:
        sandbox = copied(first_chunks, Path(name) / "sandbox", child)
        path = sandbox.root / real(sandbox, place)
        tree = json.loads(path.read_text())
        path.write_text(json.dumps(data.draw(leading_out(tree, str(sandbox.neighbour)))))
        for command in commands.split():
            arguments = [real(sandbox, each) for each in ALL[command]]
            sandbox.backy(*arguments)


LINES_OUT = [
    "../../../../../../../neighbour/chunks/",
    "../../../neighbour/pages/",
    "..",
    "/../../../../neighbour/restore.sh",
    "@neighbour/",
    "\0",
]


@pytest.mark.parametrize("what", ["format-1", "index", "page"])
@pytest.mark.parametrize("line", LINES_OUT, ids=ascii)
def test_no_index_or_page_makes_backy_read_or_write_outside_its_repository(
    hostile: Sandbox, line: str, what: str
) -> None:
    for revision in hostile.revisions():
        if revision.exists():
            forge(hostile, revision, line.replace("@neighbour", str(hostile.neighbour)), what)
    for command in USING.split():
        arguments = [real(hostile, each) for each in ALL[command]]
        hostile.backy(*arguments)


def forge(hostile: Sandbox, folder: Path, line: str, what: str) -> None:
    """An index, or a page, of such lines; and all hashes above it are right."""
    record = json.loads((folder / "revision.json").read_text())
    disk = record["disks"]["vda"]
    blocks = -(-disk["size"] // BLOCK)
    forged = line.ljust(64, "a")[:64].encode() + b"\n"
    record["format"] = 1 if what == "format-1" else 2
    content = forged * (blocks if what == "format-1" else -(-blocks // LINES))
    if what == "page":
        page = forged * blocks
        for path in copies(hostile.root, digest_of(page)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(page)
        content = text_of([digest_of(page)])
    (folder / "vda.blocks").write_bytes(content)
    disk["index_hash"] = digest_of(content)
    (folder / "revision.json").write_text(json.dumps(record))


def test_a_report_about_other_files_deletes_only_itself(hostile: Sandbox) -> None:
    path = hostile.root / real(hostile, "quarantine/@report/report.json")
    record = json.loads(path.read_text())
    record["healed"] = "the source"
    record["revisions"] = ["../../../neighbour"]
    record["occurrences"] = [
        {"revision": "../../../neighbour", "disk": "vda", "start": 0, "length": 1}
    ]
    path.write_text(json.dumps(record))
    outcome = hostile.backy("reports", "delete", "vm1", "--healed")
    assert outcome.code in {0, 6}
    assert len(list((hostile.root / "revisions").iterdir())) == 2
