"""repository.json, revision.json, report.json and scrub.json may say anything.

Each is refused with a BackyError, or everything that backy does with it works. Mutations begin
with the good files of the corpus; every file of the corpus is replayed.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.cli import reports, verify
from backy.cli.output import print_document, print_lines, revision_table, summary
from backy.errors import BackyError, ConfigError, DamagedError, NotFoundError
from backy.model.revision import Revision, disk_of
from backy.model.selector import select
from backy.operations.backup import backup
from backy.operations.heal import Damage, distrusted
from backy.operations.origin import LiveSource
from backy.operations.scrub import Limits, Scrub
from backy.operations.site import Site
from backy.repository import quarantine_reports
from backy.repository.records import encode_record, read_revision, read_settings
from backy.repository.repository import Repository
from backy.sources import Request, open_source, reject_unsafe
from tests.fuzz import corpora
from tests.fuzz.mutate import damaged_json
from tests.lab.repositories import BLOCK, Made
from tests.memory_source import MemorySource
from tests.snapshots import opened

ID = "20261123T004938Z-x7k2"
REPORT = "20261124T030000Z-abab"


@dataclass(frozen=True, slots=True)
class Room:
    """A good repository, of which one file at a time is replaced."""

    folder: Path
    made: Made

    def put(self, name: str, content: bytes) -> Path:
        path = self.made.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        newest = self.made.ids()[-1] if b"@newest@" in content else ""
        now = f"{datetime.now(UTC) - timedelta(minutes=1):%Y-%m-%dT%H:%M:%SZ}"
        words = {b"@newest@": newest, b"@now@": now, b"@folder@": str(self.folder)}
        for word, text in words.items():
            content = content.replace(word, text.encode())
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    folder = tmp_path_factory.mktemp("room")
    (folder / "source.img").write_bytes(b"source" * 1000)
    made = Made(folder)
    made.backup(b"x" * (BLOCK + 5))
    made.backup(b"y" * (BLOCK + 5))
    return Room(folder, made)


@contextmanager
def printed(*, for_people: bool = True) -> Iterator[None]:
    """What is printed meanwhile must be UTF-8, and for people without control characters."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="utf-8", errors="strict", write_through=True)
    with redirect_stdout(stream), redirect_stderr(stream):
        yield
    text = raw.getvalue().decode()
    if for_people:
        assert {each for each in text if not each.isprintable()} <= {"\n"}, ascii(text)


def said(error: BackyError) -> None:
    """A refusal says why and what to do."""
    assert error.message
    assert error.hint


def use_repository(room: Room, content: bytes) -> None:
    """Raises ConfigError."""
    path = room.put("other/repository.json", content)
    settings = read_settings(path)
    assert settings.block_size in range(65536, 16 * 2**20 + 1, 65536)
    with (
        suppress(BackyError),
        opened(
            open_source(reject_unsafe(settings.source)), Request("20261123T004938Z-x7k2")
        ) as snapshot,
    ):
        assert snapshot.disks
    try:
        repository = Repository(path.parent)
    except ConfigError as error:  # a store that nobody has
        said(error)
        return
    live = LiveSource(repository)
    live.read(room.made.repository.history().revisions[-1], "vda", 0, "")
    live.close()
    assert repository.history().revisions == []
    again = encode_record(settings)
    path.write_bytes(again)
    assert encode_record(read_settings(path)) == again


def use_revision(room: Room, content: bytes) -> None:
    """Raises DamagedError."""
    path = room.put(f"other/{ID}/revision.json", content)
    revision = read_revision(path, BLOCK)
    with printed():
        print_lines(revision_table([revision]))
        print_lines([summary(revision, 1)])
    for name, disk in revision.disks.items():
        assert (path.parent / f"{name}.blocks").resolve().parent == path.parent.resolve()
        assert disk_of(revision, name) == name
        hurt = distrusted(revision, [Damage(revision.id, name, 0, 1, "")])
        room.put(f"other/{ID}/revision.json", encode_record(hurt))
        assert read_revision(path, BLOCK).damaged == hurt.damaged
        assert_ranges(hurt, name, disk.size)
    for tag in revision.tags:
        assert select(f"tag:{tag}", [revision]) == [revision]
    again = encode_record(revision)
    room.put(f"other/{ID}/revision.json", again)
    assert read_revision(path, BLOCK) == revision


def assert_ranges(revision: Revision, name: str, size: int) -> None:
    for start, length in revision.damaged.get(name, ()):
        assert 0 <= start < start + length <= size


def use_report(room: Room, content: bytes) -> None:
    """Raises DamagedError."""
    path = room.put(f"quarantine/{REPORT}/report.json", content)
    repository = room.made.repository
    context: Any = SimpleNamespace(obj=Site(room.folder))
    listed = list(quarantine_reports.reports(repository))
    for as_json in (False, True):
        with printed(for_people=not as_json):
            reports.list_reports(context, "vm1", as_json=as_json)
    try:
        report = quarantine_reports.find(repository, REPORT)
    except DamagedError:
        assert listed == []
        raise
    assert listed == [report]
    for as_json in (False, True):
        with printed(for_people=not as_json):
            reports.show(context, "vm1", REPORT, as_json=as_json)
    assert path.exists()
    quarantine_reports.delete(repository, [each.id for each in listed])
    assert not path.exists()
    assert list((room.made.root / "quarantine").iterdir()) == []


def use_scrub(room: Room, content: bytes) -> None:
    """Never raises: what cannot be believed is forgotten."""
    path = room.put("scrub.json", content)
    run = Scrub(room.made.repository, timedelta(days=30))
    assert list(run.run(Limits(), origins=[])) == []
    covered = run.coverage()
    with printed():
        sys.stdout.write(verify._covered(covered, "30d"))
        print_document([covered.total, covered.read])
    assert 0 <= covered.share <= 1
    again = path.read_bytes()
    assert list(Scrub(room.made.repository, timedelta(days=30)).run(Limits(), origins=[])) == []
    assert json.loads(path.read_bytes()).keys() == json.loads(again).keys()


KINDS: dict[str, Callable[[Room, bytes], None]] = {
    "repository": use_repository,
    "revision": use_revision,
    "report": use_report,
    "scrub": use_scrub,
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in corpora.names(kind)]
)
def test_a_record_of_the_corpus_is_refused_or_works(room: Room, kind: str, name: str) -> None:
    content = corpora.content(kind, name)
    if corpora.is_good(name):
        KINDS[kind](room, content)
        return
    try:
        KINDS[kind](room, content)
    except BackyError as error:
        said(error)


MUTATED = {kind: damaged_json(corpora.good(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_mutated_record_is_refused_or_works(room: Room, kind: str, data: st.DataObject) -> None:
    content = data.draw(MUTATED[kind])
    try:
        KINDS[kind](room, content)
    except BackyError as error:
        said(error)


REFUSED = {
    "repository": ["newer", "nan", "level-infinity", "deep", "list", "truncated", "control"],
    "revision": [
        "damaged-of-nothing",
        "damaged-beyond-the-end",
        "damaged-before-the-start",
        "damaged-huge",
        "damaged-with-escape",
        "damaged-triples",
        "disk-leads-out",
        "disk-is-hidden",
        "id-of-another",
        "time-of-another",
        "seconds-nan",
        "tag-for-a-shell",
        "warning-with-surrogate",
        "surrogate-in-utf-8",
    ],
    "report": [
        "id-of-another",
        "id-leads-out",
        "digest-leads-out",
        "disk-leads-out",
        "reason-with-surrogate",
    ],
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in REFUSED.items() for name in names]
)
def test_what_lies_or_leads_out_is_refused(room: Room, kind: str, name: str) -> None:
    with pytest.raises((ConfigError, DamagedError)) as caught:
        KINDS[kind](room, corpora.content(kind, name))
    said(caught.value)


@pytest.mark.parametrize(
    "name", ["damaged-descending", "damaged-overlapping", "damaged-within-a-block"]
)
def test_damage_in_any_order_never_keeps_a_backup_from_being_made(
    tmp_path: Path, name: str
) -> None:
    made = Made(tmp_path)
    first = made.backup(b"x" * (4 * BLOCK + 5))
    path = made.repository.folder_of(first).path / "revision.json"
    hurt = json.loads(corpora.content("revision", name))["damaged"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"damaged": hurt}))
    second = backup_of_same(made, b"x" * (4 * BLOCK + 5))
    assert made.read(second) == b"x" * (4 * BLOCK + 5)


def backup_of_same(made: Made, content: bytes) -> Revision:
    """A backup whose source says that nothing changed since the last revision."""
    known = {revision: {"vda": content} for revision in made.ids()}
    return backup(made.repository, MemorySource({"vda": content}, known))


def nested(depth: int) -> bytes:
    """A repository.json whose source has a path so deep in lists."""
    return (
        b'{"format":1,"store":"chunks","block_size":65536,"source":{"type":"file","disks":{"vda":'
        + b"[" * depth
        + b"]" * depth
        + b"}}}"
    )


def test_no_depth_of_nesting_is_a_bug(room: Room) -> None:
    accepted = 0
    deep = range(sys.getrecursionlimit() - 20, sys.getrecursionlimit() + 5)
    for depth in (*range(190, 210), *deep):  # the parser of pydantic stops at 200
        try:
            settings = read_settings(room.put("other/repository.json", nested(depth)))
        except ConfigError as error:
            said(error)
            continue
        accepted += 1
        with pytest.raises(ConfigError):
            deeper(30, partial(open_source, settings.source))
    assert accepted


def deeper(frames: int, work: Callable[[], object]) -> object:
    """Work from so many frames further down, as `verify` is from where settings are read."""
    return deeper(frames - 1, work) if frames else work()


def test_a_report_that_is_not_there_is_not_found(room: Room) -> None:
    (room.made.root / "quarantine").mkdir(exist_ok=True)
    for word in ("../../vm1", "20261124T030000Z-abab/../..", "\0", "", ".", "\ud800", ID):
        with pytest.raises(NotFoundError):
            quarantine_reports.find(room.made.repository, word)
