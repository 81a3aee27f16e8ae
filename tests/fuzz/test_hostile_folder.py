"""A repository may be made by an enemy: every command ends, says why, and touches nothing else."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import blake3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.conftest import BLOCK, copied
from tests.fuzz.mutate import Json, changed_tree, places, with_change
from tests.fuzz.sandbox import Child, Sandbox

ALL: dict[str, tuple[str, ...]] = {
    "jobs": ("list",),
    "jobs-json": ("list", "--json"),
    "list": ("list", "vm1"),
    "list-json": ("list", "vm1", "--json"),
    "find": ("find", "vm1"),
    "diff": ("diff", "vm1", "1", "0"),
    "reports": ("reports",),
    "reports-json": ("reports", "--json"),
    "show": ("reports", "show", "vm1", "@report"),
    "restore": ("restore", "vm1", "@target"),
    "keep-going": ("restore", "vm1", "@target", "--keep-going"),
    "verify": ("verify", "vm1"),
    "scrub": ("scrub", "vm1"),
    "tag": ("tag", "vm1", "+weekly"),
    "backup": ("backup", "vm1"),
    "undo": ("undo", "vm1"),
    "remove": ("remove", "vm1", "-r", "first"),
    "purge": ("purge", "vm1"),
    "delete": ("reports", "delete", "vm1", "@report"),
    "delete-healed": ("reports", "delete", "vm1", "--healed"),
}
CHANGING = "list verify backup remove undo purge delete"
USING = "diff restore keep-going verify scrub backup purge"
READ = "list restore verify"
PLACES = {
    "repository.json": "jobs backup",
    ".repository.json.new": "jobs",
    "restore.sh": "verify backup",
    ".restore.sh.new": "verify",
    "lock": "backup purge",
    "scrub.json": "scrub",
    ".scrub.json.new": "scrub",
    "revisions": f"{READ} backup purge",
    "revisions/.draft": "list backup",
    "revisions/@newest": f"{READ} tag purge backup",
    "revisions/@newest/revision.json": f"{READ} tag purge",
    "revisions/@newest/.revision.json.new": "tag",
    "revisions/@newest/vda.blocks": f"{READ} diff backup purge",
    "chunks": "restore verify backup purge",
    "chunks/@ab": "verify backup purge",
    "chunks/zz": "purge",
    "chunks/@ab/zzzz": "purge",
    "chunks/@ab/@chunk": "restore verify backup purge",
    "trash": "backup undo remove purge",
    "trash/odd": "backup purge undo",
    "trash/.odd": "backup purge",
    "trash/@batch": "backup purge undo",
    "trash/@batch/@removed": "backup purge undo",
    "trash/@batch/@removed/revision.json": "purge undo",
    "trash/@batch/@removed/vda.blocks": "purge",
    "quarantine": "reports show verify delete",
    "quarantine/.odd": "verify delete",
    "quarantine/@report": "reports show delete",
    "quarantine/@report/report.json": "reports verify delete",
    "quarantine/@report/stored": "show delete",
}
IMAGES = {
    "revisions/@newest/vda.img": f"{READ} scrub keep-going backup purge",
    "revisions/@newest": "verify backup",
    "revisions/@newest/vda.blocks": "verify backup",
}


def only(folder: Path) -> str:
    """The name of the only thing in a folder."""
    (path,) = folder.iterdir()
    return path.name


def real(sandbox: Sandbox, place: str) -> str:
    """A place with what "@" stands for."""
    newest = sandbox.revisions()[-1].name
    trash = sandbox.neighbour / "trash"
    batch = only(trash)
    chunk = min((sandbox.neighbour / "chunks").glob("*/*"), default=Path("ab/chunk"))
    words = {
        "@newest": newest,
        "@batch": batch,
        "@removed": only(trash / batch),
        "@report": only(sandbox.neighbour / "quarantine"),
        "@ab": chunk.parent.name,
        "@chunk": chunk.name,
        "@target": f"{sandbox.folder}/target",
    }
    for word, text in words.items():
        place = place.replace(word, text)
    return place


def say(sandbox: Sandbox, name: str) -> None:
    """Run one of ALL."""
    sandbox.backy(*(real(sandbox, argument) for argument in ALL[name]))


Maker = Callable[[Path, Path], object]  # what to make, and what the neighbour has in that place


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("inside")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


def node(path: Path, kind: int, major: int, minor: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a device node")
    os.mknod(path, kind | 0o600, os.makedev(major, minor))


def link(path: Path, there: Path) -> None:
    """To what is there, or else to another place of the neighbour's."""
    neighbour = next(each for each in there.parents if each.name == "neighbour")
    other = "restore.sh" if path.name.endswith((".new", "zzzz")) else "revisions"
    path.symlink_to(there if there.exists() else neighbour / other)


KINDS: dict[str, Maker] = {
    "fifo": lambda path, there: os.mkfifo(path),
    "folder": lambda path, there: folder(path),
    "file": lambda path, there: path.write_text("nothing that backy wrote"),
    "loop": lambda path, there: path.symlink_to(path),
    "dangling-link": lambda path, there: path.symlink_to(there.parent / "new"),
    "link": link,
    "sparse": lambda path, there: sparse(path),
    "endless-device": lambda path, there: node(path, stat.S_IFCHR, 1, 5),  # /dev/zero
    "missing-device": lambda path, there: node(path, stat.S_IFBLK, 240, 9),  # nobody's
}


def put(sandbox: Sandbox, place: str, kind: str) -> None:
    """Replace what is in a place, moving it aside."""
    path = sandbox.root / real(sandbox, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(path):
        path.rename(sandbox.folder / "aside")
    KINDS[kind](path, sandbox.neighbour / real(sandbox, place))


def cases(places_: dict[str, str]) -> list[tuple[str, str]]:
    """What is put where: all in a soak, else what hangs, what leads out, and now and then more."""
    others = [kind for kind in KINDS if kind not in {"fifo", "link"}]
    found = []
    for number, place in enumerate(places_):
        is_soak = os.environ.get("HYPOTHESIS_PROFILE") == "soak"
        more = [] if number % 2 else [others[number // 2 % len(others)]]
        kinds = list(KINDS) if is_soak else ["fifo", "link", *more]
        found += [(place, kind) for kind in kinds]
    return found


@pytest.mark.parametrize(("place", "kind"), cases(PLACES))
def test_nothing_in_any_place_is_a_bug_a_hang_or_a_way_out(
    hostile: Sandbox, place: str, kind: str
) -> None:
    put(hostile, place, kind)
    for name in PLACES[place].split():
        say(hostile, name)


@pytest.mark.parametrize(("place", "kind"), cases(IMAGES))
def test_nothing_in_place_of_an_image_is_a_bug_a_hang_or_a_way_out(
    hostile_images: Sandbox, place: str, kind: str
) -> None:
    put(hostile_images, place, kind)
    for name in IMAGES[place].split():
        say(hostile_images, name)


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
FOLDERS = ["revisions", "trash", "trash/@batch", "quarantine", "chunks", "chunks/@ab"]


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
            assert sandbox.reads_nothing_else(sandbox.backy(*arguments))


@pytest.mark.parametrize(
    "line",
    [
        "../../../../../../../neighbour/chunks/",
        "..",
        "/../../../../neighbour/restore.sh",
        "@neighbour/",
        "\0",
    ],
    ids=ascii,
)
def test_no_index_makes_backy_read_or_write_outside_its_repository(
    hostile: Sandbox, line: str
) -> None:
    for revision in hostile.revisions():
        if revision.exists():
            forge(revision, line.replace("@neighbour", str(hostile.neighbour)))
    for command in USING.split():
        arguments = [real(hostile, each) for each in ALL[command]]
        assert hostile.reads_nothing_else(hostile.backy(*arguments))


def forge(folder: Path, line: str) -> None:
    """An index of such lines, with its hash in revision.json."""
    record = json.loads((folder / "revision.json").read_text())
    disk = record["disks"]["vda"]
    blocks = -(-disk["size"] // BLOCK)
    content = (line.ljust(64, "a")[:64].encode() + b"\n") * blocks
    (folder / "vda.blocks").write_bytes(content)
    disk["index_hash"] = blake3.blake3(content).hexdigest()
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
    assert hostile.reads_nothing_else(outcome)
