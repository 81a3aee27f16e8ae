"""A program of the user's is a source; what it prints is believed only if it is whole."""

import base64
import json
import os
import re
import subprocess
import tracemalloc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from textwrap import dedent

import pytest

from backy.errors import ConfigError, SourceError
from backy.model.extent import Extent, Kind
from backy.model.revision import Consistency, Revision
from backy.sources import Request, Source
from backy.sources.exec import ExecSource
from tests.conformance.image import read
from tests.conformance.source import SourceSuite
from tests.contrib.test_sources import Chain, revision
from tests.lab.watchdog import ends
from tests.memory_source import sample
from tests.programs import MARK, alive, marked
from tests.snapshots import opened

KIB, MIB = 1024, 1024**2
CONTENT = sample(4 * MIB)
PAGE = Path(__file__).parents[2] / "docs" / "sources" / "exec.md"
NEW, OLD = revision(1, {}).id, revision(0, {}).id
TITLE = f"parent {OLD}\n"


class Double:
    """A program that answers what the test says, and writes down what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.disk = folder / "disk.raw"
        self.disk.write_bytes(CONTENT)
        self.program = folder / "program"
        self.code = dict.fromkeys(("snapshot", "extents", "release"), "")
        self.answer({"disks": {"vda": {"read": str(self.disk), "changes-since": OLD}}})
        self.extents(f"0 {len(CONTENT)} same\n")

    def answer(self, said: object) -> None:
        text = said if isinstance(said, str) else json.dumps(said)
        (self.folder / "snapshot").write_text(text)

    def extents(self, lines: str, title: str = TITLE) -> None:
        (self.folder / "extents").write_text(title + lines)

    def source(self, **settings: object) -> ExecSource:
        (self.folder / "release").write_text("")
        lines = "\n".join(f"{verb}) {code or ':'} ;;" for verb, code in self.code.items())
        self.program.write_text(
            f"#!/bin/sh\nfor verb; do :; done\ncat > {self.folder}/request\n"
            f'{{ printf "%s " "$verb"; cat {self.folder}/request; echo; }} >> {self.folder}/log\n'
            f"case $verb in\n{lines}\nesac\ncat {self.folder}/$verb\n"
        )
        self.program.chmod(0o755)
        return ExecSource(command=[str(self.program), "--quiet"], **settings)

    def asked(self) -> list[tuple[str, dict[str, object]]]:
        """Each verb with its request, but for the settings."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        pairs = [line.split(" ", 1) for line in lines]
        return [
            (verb, {k: v for k, v in json.loads(request).items() if k != "settings"})
            for verb, request in pairs
        ]


@pytest.fixture
def double(tmp_path: Path) -> Double:
    return Double(tmp_path)


def parent(size: int = len(CONTENT)) -> Revision:
    return revision(0, {"vda": size})


def extents(double: Double, before: Revision | None) -> tuple[list[Extent], Mapping[str, str]]:
    """What the source says of vda, and why all of it has to be read."""
    with opened(double.source(), Request(NEW, before)) as snapshot:
        return list(snapshot.disks["vda"].extents()), dict(snapshot.full_read_reasons)


def test_the_program_is_asked_in_order(double: Double) -> None:
    with opened(double.source(), Request(NEW, parent(), is_frozen=True)) as snapshot:
        assert read(snapshot.disks["vda"], 0, len(CONTENT)) == CONTENT
        snapshot.keep_checkpoint()
    assert double.asked() == [
        ("snapshot", {"revision": NEW, "parent": OLD, "is_frozen": True}),
        ("extents", {"revision": NEW, "parent": OLD, "disk": "vda"}),
        ("release", {"revision": NEW, "keep": None, "is_kept": True}),
    ]


def test_its_settings_come_to_the_program_as_they_are(double: Double) -> None:
    settings = {"pool": "é", "list": [1, {"deep": None}], "a-key": True}
    double.source(settings=settings).remove_all_except([])
    assert json.loads((double.folder / "request").read_text())["settings"] == settings


def test_the_program_is_told_which_snapshots_to_keep(double: Double) -> None:
    double.source().remove_all_except({NEW, OLD})
    assert double.asked() == [("release", {"revision": None, "keep": [OLD, NEW], "is_kept": False})]


def test_the_program_is_asked_for_changes_when_the_snapshot_is_opened(double: Double) -> None:
    """A guest that hooks have frozen goes on by then; to compare snapshots may take minutes."""
    with double.source().snapshot(Request(NEW, parent(), is_frozen=True)) as taken:
        assert [verb for verb, _ in double.asked()] == ["snapshot"]
        with taken.open() as snapshot:
            assert [verb for verb, _ in double.asked()] == ["snapshot", "extents"]
            assert set(snapshot.disks) == {"vda"}


def test_a_raw_file_that_changes_while_it_is_read_is_told(double: Double) -> None:
    with opened(double.source(), Request(NEW)) as snapshot:
        read(snapshot.disks["vda"], 0, MIB)
        double.disk.write_bytes(CONTENT + b"x")
        [warning] = snapshot.warnings()
        assert str(double.disk) in warning


@pytest.mark.parametrize("failure", ["snapshot", "body", "answer", "disk"])
def test_release_runs_for_this_revision_alone_whatever_failed(double: Double, failure: str) -> None:
    match failure:
        case "snapshot":
            double.code["snapshot"] = "exit 3"
        case "answer":
            double.answer("{")
        case "disk":
            double.disk.unlink()
        case _:
            pass
    expected = ZeroDivisionError if failure == "body" else SourceError
    with pytest.raises(expected), opened(double.source(), Request(NEW, parent())):
        raise ZeroDivisionError
    assert double.asked()[-1] == (
        "release",
        {"revision": NEW, "keep": None, "is_kept": False},
    )


def test_a_release_that_fails_does_not_undo_a_backup(double: Double) -> None:
    double.code["release"] = "exit 1"
    source = double.source()
    with opened(source, Request(NEW)) as snapshot:
        snapshot.keep_checkpoint()
    with pytest.raises(SourceError, match="release"):
        source.remove_all_except([NEW])


def test_a_program_that_fails_is_quoted(double: Double) -> None:
    double.code["snapshot"] = "echo first >&2; echo 'the pool is full' >&2; exit 1"
    with pytest.raises(SourceError) as caught, opened(double.source(), Request(NEW)):
        pytest.fail("a snapshot was taken")
    assert caught.value.message == f"source exec, snapshot: {double.program}: the pool is full"


def test_a_program_that_hangs_is_ended(double: Double) -> None:
    double.code["snapshot"] = "exec sleep 600"
    source = double.source(timeout="1s")
    with pytest.raises(SourceError, match="longer than 1 s"), opened(source, Request(NEW)):
        pytest.fail("a snapshot was taken")


def test_a_program_that_is_missing_is_an_error(tmp_path: Path) -> None:
    source = ExecSource(command=[str(tmp_path / "missing")])
    with pytest.raises(SourceError, match="missing"), opened(source, Request(NEW)):
        pytest.fail("a snapshot was taken")


MAP = [
    Extent(0, MIB, Kind.SAME),
    Extent(MIB, 4096, Kind.DATA),
    Extent(MIB + 4096, MIB - 4096, Kind.ZERO),
    Extent(2 * MIB, 2 * MIB, Kind.SAME),
]
LINES = "".join(f"{each.start} {each.length} {each.kind.value}\n" for each in MAP)


def test_the_map_of_the_program_tells_what_is_read(double: Double) -> None:
    double.extents(LINES)
    assert extents(double, parent()) == (MAP, {})


ALL = f"0 {len(CONTENT)} data\n"
WRONG = {
    "another-parent": (f"parent {NEW}\n", ALL),
    "no-parent": ("", ALL),
    "a-parent-with-more": (f"parent {OLD} x\n", ALL),
    "nothing": ("", ""),
    "a-gap-at-the-start": (TITLE, LINES.partition("\n")[2]),
    "a-gap": (TITLE, LINES.replace(f"{MIB} 4096 data\n", "")),
    "a-gap-at-the-end": (TITLE, LINES[: LINES.rindex("2097152")]),
    "cut-in-a-number": (TITLE, LINES[:-9]),
    "no-newline-at-the-end": (TITLE, LINES[:-1]),
    "an-overlap": (TITLE, LINES.replace(f"{MIB} 4096", f"{MIB - 1} 4097")),
    "out-of-order": (TITLE, f"{2 * MIB} {2 * MIB} same\n0 {2 * MIB} data\n"),
    "too-long": (TITLE, f"0 {len(CONTENT) + 1} same\n"),
    "too-long-by-a-line": (TITLE, f"{LINES}{len(CONTENT)} 1 data\n"),
    "nothing-long": (TITLE, f"0 0 data\n{ALL}"),
    "negative": (TITLE, f"0 -1 data\n{ALL}"),
    "another-word": (TITLE, LINES.replace("zero", "hole")),
    "hexadecimal": (TITLE, LINES.replace("4096", "0x1000")),
    "an-empty-line": (TITLE, f"\n{ALL}"),
    "a-line-without-end": (TITLE, "0" * MIB),
    "huge": (TITLE, f"0 {10**18} same\n"),
    "not-text": (TITLE, "\udcff\udcfe\n"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_map_that_is_not_whole_is_refused_as_a_whole(double: Double, case: str) -> None:
    title, lines = WRONG[case]
    (double.folder / "extents").write_bytes((title + lines).encode(errors="surrogateescape"))
    found, whole = extents(double, parent())
    assert Kind.SAME not in {each.kind for each in found}
    assert set(whole) == {"vda"}
    assert len(whole["vda"]) < 700


def test_a_program_that_fails_in_extents_costs_only_time(double: Double) -> None:
    double.extents(LINES)
    double.code["extents"] = f"cat {double.folder}/extents; echo broken >&2; exit 1"
    found, whole = extents(double, parent())
    assert Kind.SAME not in {each.kind for each in found}
    assert "broken" in whole["vda"]


def test_a_disk_of_another_size_is_read_in_full(double: Double) -> None:
    found, whole = extents(double, parent(len(CONTENT) - 512))
    assert Kind.SAME not in {each.kind for each in found}
    assert "another size" in whole["vda"]
    assert "extents" not in dict(double.asked())


def test_changes_since_another_revision_are_not_asked_for(double: Double) -> None:
    said = {"read": str(double.disk), "changes-since": "the pool was made anew"}
    double.answer({"disks": {"vda": said}})
    found, whole = extents(double, parent())
    assert Kind.SAME not in {each.kind for each in found}
    assert "the pool was made anew" in whole["vda"]
    assert "extents" not in dict(double.asked())


@pytest.mark.parametrize("since", [None, "absent"])
def test_a_program_that_tracks_no_changes_is_no_warning(double: Double, since: object) -> None:
    said = {"read": str(double.disk)} | ({} if since else {"changes-since": None})
    double.answer({"disks": {"vda": said}})
    assert extents(double, parent())[1] == {}
    assert "extents" not in dict(double.asked())


@pytest.mark.parametrize("before", [None, revision(0, {"other": 4096})], ids=["first", "new-disk"])
def test_a_disk_that_the_parent_does_not_have_is_no_warning(
    double: Double, before: Revision | None
) -> None:
    assert extents(double, before)[1] == {}
    assert "extents" not in dict(double.asked())


BAD_ANSWERS = {
    "nothing": "",
    "no-json": "vda: /dev/x",
    "a-list": "[]",
    "no-disks": {"disks": {}},
    "a-bad-name": {"disks": {"../vda": {"read": "/dev/null"}}},
    "a-relative-path": {"disks": {"vda": {"read": "disk.raw"}}},
    "an-unknown-uri": {"disks": {"vda": {"read": "http://localhost/"}}},
    "an-unknown-key": {"disks": {"vda": {"read": "/x", "raed": "/y"}}},
    "an-unknown-consistency": {"disks": {"vda": {"read": "/x"}}, "consistency": "good"},
    "bad-base64": {"disks": {"vda": {"read": "/x"}}, "files": {"a": "abcde"}},
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", BAD_ANSWERS)
def test_an_answer_that_cannot_be_used_is_an_error(double: Double, case: str) -> None:
    double.answer(BAD_ANSWERS[case])
    with (
        pytest.raises(SourceError, match="source exec, snapshot") as caught,
        opened(double.source(), Request(NEW)),
    ):
        pytest.fail("a snapshot was taken")
    assert "exec.md" in caught.value.hint
    assert len(caught.value.message) < 1000


def test_files_and_consistency_are_the_programs(double: Double) -> None:
    files = {"vm.xml": base64.b64encode(b"<domain/>").decode()}
    disks = {"vda": {"read": str(double.disk)}}
    double.answer({"disks": disks, "files": files, "consistency": "filesystem"})
    with opened(double.source(), Request(NEW)) as snapshot:
        assert snapshot.files == {"vm.xml": b"<domain/>"}
        assert snapshot.consistency is Consistency.FILESYSTEM


def test_without_a_word_on_consistency_there_is_none(double: Double) -> None:
    with opened(double.source(), Request(NEW)) as snapshot:
        assert snapshot.consistency is Consistency.NONE


def test_a_disk_can_be_an_image(double: Double) -> None:
    image = double.folder / "disk.image"
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", double.disk, image], check=True)
    said = {"read": str(image), "format": "qcow2", "changes-since": OLD}
    double.answer({"disks": {"vda": said}})
    double.extents(LINES)
    with opened(double.source(), Request(NEW, parent())) as snapshot:
        assert list(snapshot.disks["vda"].extents()) == MAP
        assert read(snapshot.disks["vda"], 0, len(CONTENT)) == CONTENT


def test_a_disk_can_be_an_nbd_export(double: Double) -> None:
    socket = double.folder / "socket"
    command = [
        "nbdkit",
        "-r",
        "-U",
        str(socket),
        "-P",
        f"{socket}.pid",
        "-f",
        "file",
        str(double.disk),
    ]
    with subprocess.Popen(command) as server:
        try:
            while not Path(f"{socket}.pid").exists():
                assert server.poll() is None
            double.answer({"disks": {"vda": {"read": f"nbd+unix:///?socket={socket}"}}})
            with opened(double.source(), Request(NEW)) as snapshot:
                assert read(snapshot.disks["vda"], 0, len(CONTENT)) == CONTENT
        finally:
            server.kill()


def test_a_long_map_costs_little_memory(double: Double) -> None:
    """Its text alone is 100 KiB, and extents that were all made at once would take 900 KiB."""
    count = len(CONTENT) // 512
    lines = "".join(f"{n * 512} 512 {('same', 'data')[n % 2]}\n" for n in range(count))
    double.extents(lines)
    with opened(double.source(), Request(NEW, parent())) as snapshot:
        tracemalloc.start()
        try:
            found = snapshot.disks["vda"].extents()
            assert next(found) == Extent(0, 512, Kind.SAME)
            assert sum(1 for _ in found) == count - 1
            assert tracemalloc.get_traced_memory()[1] < 64 * 1024
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize(
    "settings",
    [{}, {"command": []}, {"command": "/x"}, {"command": ["/x"], "pool": 1}],
    ids=["nothing", "empty", "a-line-of-shell", "foreign-setting"],
)
def test_settings_of_another_kind_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        ExecSource(**settings)


class TestPrograms(SourceSuite):
    consistency = Consistency.CRASH

    @contextmanager
    def open(self, disks: Mapping[str, bytes], folder: Path) -> Iterator[Source]:
        for name, content in disks.items():
            (folder / f"{name}.raw").write_bytes(content)
        said = {name: {"read": str(folder / f"{name}.raw")} for name in disks}
        answer = json.dumps({"disks": said, "consistency": "crash"})
        code = '[ "$2" != snapshot ] || printf %s "$1"'
        yield ExecSource(command=["/bin/sh", "-c", code, "sh", answer])


def example() -> str:
    """The program in the documentation."""
    [found] = re.findall(r"```sh\n(#!/bin/sh\n.*?)```", PAGE.read_text(), re.DOTALL)
    return dedent(found)


class Reflinked:
    """The image of the example, and backups by it."""

    def __init__(self, folder: Path) -> None:
        self.image = folder / "vm1.raw"
        self.image.write_bytes(CONTENT)
        program = folder / "snapshots.sh"
        program.write_text(example())
        program.chmod(0o755)
        self.chain = Chain("vmware-cbt")
        settings = {"command": [str(program), str(self.image)], "timeout": "60s"}
        self.chain.source = ExecSource(**settings)

    def write(self, offset: int, content: bytes) -> None:
        with self.image.open("r+b") as file:
            file.seek(offset)
            file.write(content)


def test_the_example_in_the_documentation_is_short_and_clean(tmp_path: Path) -> None:
    assert len(example().splitlines()) <= 28
    program = tmp_path / "example.sh"
    program.write_text(example())
    subprocess.run(["shellcheck", program], check=True)


def test_the_example_in_the_documentation_gives_deltas(reflink_folder: Path) -> None:
    disk = Reflinked(reflink_folder)
    assert disk.chain.backup().contents == {"vda": CONTENT}
    for number in range(3):
        disk.write(number * MIB + 77, os.urandom(100))
        taken = disk.chain.backup()
        assert taken.contents == {"vda": disk.image.read_bytes()}
        assert taken.full_read_reasons == {}
        assert taken.data["vda"] < MIB
    disk.write(0, b"lost")
    disk.chain.backup(is_kept=False)
    disk.chain.take(None, revision(9, {}), is_kept=False)  # as `heal` does
    taken = disk.chain.backup()
    assert taken.contents == {"vda": disk.image.read_bytes()}
    assert taken.full_read_reasons == {}
    assert len(list(reflink_folder.glob("vm1.raw.backy-*"))) == 1


def test_the_example_in_the_documentation_refuses_another_parent(reflink_folder: Path) -> None:
    disk = Reflinked(reflink_folder)
    disk.chain.backup()
    first = disk.chain.taken[0]
    disk.chain.taken[0] = replace(first, revision=replace(first.revision, id=NEW))
    taken = disk.chain.take(disk.chain.taken[0], revision(5, {}))
    assert set(taken.full_read_reasons) == {"vda"}
    assert taken.same == {"vda": 0}


def test_a_process_in_the_background_that_holds_the_output_is_named(
    double: Double, tmp_path: Path
) -> None:
    with marked(str(tmp_path)) as mark:
        double.code["snapshot"] = f"{MARK}={mark} sleep 600 &"
        with ends(60), opened(double.source(), Request(NEW, None)) as snapshot:
            [warning] = snapshot.warnings()
        assert alive(mark)
    assert warning.startswith(f"source exec, snapshot: {double.program} left a process in the back")


def test_an_answer_that_comes_after_the_end_of_the_program_is_not_waited_for(
    double: Double, tmp_path: Path
) -> None:
    double.answer("")
    with marked(str(tmp_path)) as mark:
        double.code["snapshot"] = f"(export {MARK}={mark}; sleep 600; echo late) &"
        with (
            ends(60),
            pytest.raises(SourceError, match="left a process"),
            opened(double.source(), Request(NEW, None)),
        ):
            pytest.fail("it was opened")
