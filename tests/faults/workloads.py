"""What backy is doing when the fault strikes, and what must be true afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

from backy.errors import DamagedError, NotFoundError
from backy.image import workers
from backy.model.extent import Kind, align
from backy.model.revision import Revision, Trust, is_id
from backy.operations.backup import backup
from backy.operations.heal import Damage
from backy.operations.origin import LiveSource
from backy.operations.restore import restore
from backy.operations.scrub import Limits, Scrub
from backy.operations.verify import verify
from backy.repository import quarantine_reports, trash
from backy.repository.create import create
from backy.repository.manifest import Settings
from backy.repository.repository import Repository
from backy.repository.tags import retag
from backy.sources.file import FileSource
from backy.stores import used
from backy.stores.blocks import StoredImage
from backy.system import files, folders, process
from tests.lab.handmade import digest_of, frame_length, write_sparse
from tests.lab.indexes import bad_lists, format_of
from tests.lab.paged import LINES, block_hashes

BLOCK = 65536
SIZE = 3 * BLOCK + 1234
JOB = "vm1"
RESTORED = "restored.img"
Disks = dict[str, bytes]  # what the disk of each revision held, by id
Lost = set[tuple[str, int]]  # blocks that cannot be read: the revision's id, the block's number
Bad = dict[str, bytes]  # what damaged blocks and pages held, by their hashes; a page holds blocks


def noise(seed: object, size: int = SIZE) -> bytes:
    """Bytes that are the same for the same seed."""
    return random.Random(str(seed)).randbytes(size)


FIRST = noise("first")
ZEROED = FIRST[:BLOCK] + bytes(BLOCK) + FIRST[2 * BLOCK :]
SECOND = ZEROED[: 2 * BLOCK + 5000] + noise("second", 100) + ZEROED[2 * BLOCK + 5100 :]
THIRD = FIRST[: 2 * BLOCK] + SECOND[2 * BLOCK :] + b"grown by some bytes"
# What workloads damage: a block that only SECOND has, and the short last one that FIRST has, too.
BAD = {
    digest_of(block): block
    for block in (SECOND[2 * BLOCK : 3 * BLOCK], SECOND[3 * BLOCK :])
}  # fmt: skip


@contextmanager
def one_worker() -> Iterator[None]:
    """Everything happens in one order."""
    with patch.object(process, "processors", lambda: -1), patch.object(workers, "_MOST", 1):
        yield


@contextmanager
def hasty() -> Iterator[None]:
    """Nothing is made durable, or read from the medium: what is done here meets no fault."""
    with (
        patch.object(files.File, "sync", lambda _: None),
        patch.object(files.File, "barrier", lambda _: None),
        patch.object(files.File, "_open_direct", lambda *_: -1),
        patch.object(used, "_DIGEST_BITS", 16),  # 32 MiB take 30 ms to fill with zeroes
    ):
        yield


def run_backup(base: Path, content: bytes, store: str) -> Revision:
    """What `backy backup` does, the repository being made where there is none."""
    source = base.parent / f"{base.name}.source"
    write_sparse(source, content)
    root = base / JOB
    if (root / "repository.json").exists():
        repository = Repository(root)
    else:
        repository = create(base, JOB, Settings(store=store, block_size=BLOCK))
    settings = {"disks": {"vda": str(source)}}
    return backup(repository, FileSource(**settings))


def read_all(repository: Repository, bad: Bad | None = None) -> tuple[Disks, Lost]:
    """Every disk of the history, read through the store, block by block.

    A block that is found damaged is an error; but not where `bad` has its hash, or that of its
    page, and what was there.
    """
    held: Disks = {}
    lost: Lost = set()
    for revision in repository.history().revisions:
        with repository.store.open(revision, "vda") as image:
            content = bytearray(image.size)
            for extent in align(image.extents(), image.block_size, image.size):
                if extent.kind is Kind.ZERO:
                    continue
                for start in range(extent.start, extent.end, image.block_size):
                    number = start // image.block_size
                    part = memoryview(content)[start : start + image.index.length_of(number)]
                    try:
                        image.readinto(start, part)
                    except DamagedError:
                        known = _known(image, number, bad or {})
                        if known is None:
                            raise
                        part[:] = known
                        lost.add((revision.id, number))
            held[revision.id] = bytes(content)
    assert not repository.history().unreadable
    return held, lost


def _known(image: StoredImage, number: int, bad: Bad) -> bytes | None:
    """What a block held that cannot be read, if it is one of those that were damaged."""
    try:
        return bad.get(image.index.digest(number))
    except DamagedError:
        page, within = divmod(number, LINES)
        start, length = within * image.block_size, image.index.length_of(number)
        known = bad.get(image.index.name(page))
        return known and known[start : start + length]


@dataclass(frozen=True)
class Workload:
    """A command on a repository with these revisions already in it, newest last.

    `old` and `new` are how many of the oldest are out of the history before and after it. One that
    `reads_one` revision need not know of damage in the others: if one of them could not be opened
    just then, the next verify finds that. `bad` is what it damages, `newest` what the newest
    revision has then, and the live source; `later` is backed up afterwards.
    """

    name: str
    before: tuple[bytes, ...]
    command: Callable[[Path, str], object]
    adds: bytes | None = None
    prepare: Callable[[Repository], object] = lambda repository: None
    old: int = 0
    new: int = 0
    is_damaged: bool = False
    has_source: bool = False
    reads_one: bool = False
    bad: Bad = field(default_factory=lambda: BAD)
    newest: bytes = SECOND
    later: bytes = THIRD

    @property
    def sample(self) -> int:
        """How many faults a normal run strikes: fewer where each takes half a second."""
        return 8 if len(self.later) < 64 * BLOCK else 2


def opened(base: Path) -> Repository:
    return Repository(base / JOB)


def remove_oldest(repository: Repository) -> None:
    oldest = min(each.name for each in (repository.folder / "revisions").iterdir())
    trash.remove(repository, [each for each in repository.history().revisions if each.id == oldest])


def verify_all(repository: Repository) -> list[Damage]:
    return list(
        verify(repository, repository.history().revisions, origins=[LiveSource(repository)])
    )


def scrub_all(repository: Repository) -> list[Damage]:
    return list(
        Scrub(repository, timedelta(days=30)).run(Limits(), origins=[LiveSource(repository)])
    )


def restore_newest(base: Path) -> None:
    repository = opened(base)
    newest = max(each.name for each in (repository.folder / "revisions").iterdir())
    restore(
        repository,
        repository.find(newest),
        "vda",
        str(base / RESTORED),
        origins=[LiveSource(repository)],
    )


def damage(repository: Repository, bad: dict[str, bytes]) -> None:
    """Turn some bits of these blocks wherever they are stored."""
    places = set()
    size = repository.settings.block_size
    for revision in repository.history().revisions:
        folder = repository.folder_of(revision).path
        for number, digest in enumerate(block_hashes(repository.folder, folder, "vda")):
            chunk = repository.folder / "chunks" / digest[:2] / f"{digest}.zst"
            if digest in bad and repository.settings.store == "images":
                places.add((folder / "vda.img", number * size + len(bad[digest]) // 2))
            elif digest in bad:
                places.add((chunk, frame_length(chunk) // 2))
    assert places
    for path, offset in places:
        mode = path.stat().st_mode
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 0x55]))
        path.chmod(mode)


def _damage_without_source(repository: Repository) -> None:
    source = repository.folder.parent.with_suffix(".live")
    repository.remember_source({"type": "file", "disks": {"vda": str(source)}})
    damage(repository, BAD)


def _damage(repository: Repository) -> None:
    repository.folder.parent.with_suffix(".live").write_bytes(SECOND)
    _damage_without_source(repository)


def _damage_and_tell(repository: Repository) -> None:
    _damage_without_source(repository)
    assert verify_all(repository)


def _heal_and_delete(repository: Repository) -> None:
    _damage(repository)
    assert verify_all(repository)


WORKLOADS = (
    Workload("first-backup", (), lambda b, s: run_backup(b, FIRST, s), adds=FIRST),
    Workload("delta", (FIRST,), lambda b, s: run_backup(b, SECOND, s), adds=SECOND),
    Workload(
        "old-content-comes-back",
        (FIRST, SECOND),
        lambda b, s: run_backup(b, THIRD, s),
        adds=THIRD,
    ),
    Workload("remove", (FIRST, SECOND), lambda b, _: remove_oldest(opened(b)), new=1),
    Workload(
        "undo",
        (FIRST, SECOND),
        lambda b, _: trash.undo(opened(b)),
        prepare=remove_oldest,
        old=1,
    ),
    Workload(
        "purge",
        (FIRST, SECOND, THIRD),
        lambda b, _: trash.purge(opened(b)),
        prepare=remove_oldest,
        old=1,
        new=1,
    ),
    Workload(
        "tag-change",
        (FIRST, SECOND),
        lambda b, _: retag(opened(b), opened(b).history().revisions, add={"new"}, drop=set()),
    ),
    Workload("verify", (FIRST, SECOND), lambda b, _: verify_all(opened(b))),
    Workload("scrub", (FIRST, SECOND), lambda b, _: scrub_all(opened(b))),
    Workload(
        "verify-that-heals",
        (FIRST, SECOND),
        lambda b, _: verify_all(opened(b)),
        prepare=_damage,
        is_damaged=True,
        has_source=True,
    ),
    Workload(
        "scrub-that-heals",
        (FIRST, SECOND),
        lambda b, _: scrub_all(opened(b)),
        prepare=_damage,
        is_damaged=True,
        has_source=True,
    ),
    Workload(
        "scrub-that-cannot-heal",
        (FIRST, SECOND),
        lambda b, _: scrub_all(opened(b)),
        prepare=_damage_without_source,
        is_damaged=True,
    ),
    Workload(
        "verify-that-cannot-heal",
        (FIRST, SECOND),
        lambda b, _: verify_all(opened(b)),
        prepare=_damage_without_source,
        is_damaged=True,
    ),
    Workload(
        "restore-that-heals",
        (FIRST, SECOND),
        lambda b, _: restore_newest(b),
        prepare=_damage,
        is_damaged=True,
        has_source=True,
        reads_one=True,
    ),
    Workload(
        "backup-that-heals",
        (FIRST, SECOND),
        lambda b, s: run_backup(b, SECOND, s),
        adds=SECOND,
        prepare=_damage_and_tell,
        is_damaged=True,
    ),
    Workload(
        "delete-reports",
        (FIRST, SECOND),
        lambda b, _: quarantine_reports.delete(
            opened(b), [each.id for each in quarantine_reports.reports(opened(b))]
        ),
        prepare=_heal_and_delete,
    ),
)


def prepared(base: Path, workload: Workload, store: str) -> Disks:
    """Make the repository that a workload begins with; give what every revision in it holds."""
    known = {}
    for content in workload.before:
        known[run_backup(base, content, store).id] = content
    if workload.before:
        workload.prepare(opened(base))
    return known


def check(
    base: Path, workload: Workload, known: Disks, store: str, *, has_ended: bool = False
) -> None:
    """The history is the old or the new one, byte for byte, and backy goes on from it unaided.

    Where the command `has_ended`, it is the new one.
    """
    root = base / JOB
    with hasty():
        if (root / "repository.json").exists():
            check_history(Repository(root), workload, known, has_ended=has_ended)
        elif known or has_ended:
            raise AssertionError("the repository is gone")
        with suppress(NotFoundError):  # there may be nothing left to bring back
            workload.command(base, store)
        repository = Repository(root)
        if workload.is_damaged and not workload.reads_one:
            _check_damage_is_known(repository, workload.bad)
        if workload.has_source:
            _check_healed(repository, workload.bad)
        if workload.is_damaged:
            _check_next(base, workload, workload.newest, store)
        newest = _check_next(base, workload, workload.later, store)
        trash.purge(repository)
        # The revisions of the store "images" that are still damaged have good copies by now.
        assert all(each.healed for each in verify_all(repository))
        held, _ = read_all(repository)
        assert held.pop(newest) == workload.later
        assert set(held.values()) <= {*known.values(), workload.adds, workload.newest}
        assert verify_all(repository) == []
        assert bad_lists(root) == set()


def _check_next(base: Path, workload: Workload, content: bytes, store: str) -> str:
    """The next backup is whole, whatever is damaged of the others; its id."""
    revision = run_backup(base, content, store)
    held, lost = read_all(opened(base), workload.bad)
    assert held[revision.id] == content
    assert revision.id not in {each for each, _ in lost}
    return revision.id


def check_history(
    repository: Repository, workload: Workload, known: Disks, *, has_ended: bool
) -> None:
    """Just after the fault: what is published reads back, but for what was damaged before."""
    held, lost = read_all(repository, workload.bad if workload.is_damaged else None)
    history = repository.history().revisions
    trust = {each.id: each.trust for each in history}
    assert not any(trust[each] is Trust.VERIFIED for each, _ in lost)
    ids = sorted(known)
    added = held.keys() - known.keys()
    old, new = set(ids[workload.old :]), set(ids[workload.new :])
    assert held.keys() - added in ([new] if has_ended else [old, new])
    assert [held[each] for each in added] in ([], [workload.adds])
    assert added or not (has_ended and workload.adds)
    assert all(held[each] == known[each] for each in held.keys() & known.keys())
    assert not added & {each for each, _ in lost}
    for name in folders.list_folder(repository.folder / "quarantine"):
        assert not is_id(name) or quarantine_reports.find(repository, name).id == name
    restored = repository.folder.parent / RESTORED
    formats = [format_of(repository.folder_of(each).path) for each in history]
    assert max(formats, default=1) <= repository.settings.format
    assert not restored.exists() or restored.read_bytes() == workload.newest
    if not workload.is_damaged:
        assert verify_all(repository) == []


def check_evidence(repository: Repository) -> None:
    """Of each bad block that was replaced the bytes are kept that the store had there."""
    held, lost = read_all(repository, BAD)
    reports = {report.digest: report for report in quarantine_reports.reports(repository)}
    for digest, block in BAD.items():
        number = SECOND.index(block) // BLOCK
        having = {each for each, content in held.items() if block in content}
        if any((each, number) not in lost for each in having):
            files = quarantine_reports.files(repository, reports[digest])
            assert [path.name for path in files][:1] == ["stored"], digest


def check_undo(repository: Repository, known: Disks) -> None:
    """What is still in reach of undo comes back whole."""
    with hasty(), suppress(NotFoundError):
        trash.undo(repository)
    held, _ = read_all(repository)
    assert held.items() <= known.items()


def _check_damage_is_known(repository: Repository, bad: Bad) -> None:
    """What cannot be read says so in each revision that has it, so nothing is built upon it."""
    _, lost = read_all(repository, bad)
    for revision in repository.history().revisions:
        ranges = revision.damaged.get("vda", ())
        for each, number in lost:
            if each == revision.id:
                assert revision.trust is Trust.DISTRUSTED, (revision, number)
                start = number * BLOCK
                assert any(low <= start < low + length for low, length in ranges), (each, number)


def _check_healed(repository: Repository, bad: Bad) -> None:
    """With the source in reach one verify makes everything whole, and says so."""
    before = read_all(repository, bad)[1]
    found = verify_all(repository)
    assert all(each.healed for each in found)
    named = {
        (each.revision, start // BLOCK)
        for each in found
        for start in range(each.start, each.start + each.length, BLOCK)
    }
    assert before <= named
    assert read_all(repository)[1] == set()
    assert {each.trust for each in repository.history().revisions} == {Trust.VERIFIED}
