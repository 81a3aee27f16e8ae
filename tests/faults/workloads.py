"""What backy is doing when the fault strikes, and what must be true afterwards."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from backy import process, trash
from backy.backup import backup
from backy.records import Settings
from backy.repository import Repository, create
from backy.revision import Revision
from backy.sources.file import FileSource
from backy.verify import verify

BLOCK = 65536
SIZE = 3 * BLOCK + 1234
JOB = "vm1"
Disks = dict[str, bytes]  # what the disk of each revision held, by id


def noise(seed: object, size: int = SIZE) -> bytes:
    """Bytes that are the same for the same seed."""
    return random.Random(str(seed)).randbytes(size)


FIRST = noise("first")
ZEROED = FIRST[:BLOCK] + bytes(BLOCK) + FIRST[2 * BLOCK :]
SECOND = ZEROED[: 2 * BLOCK + 5000] + noise("second", 100) + ZEROED[2 * BLOCK + 5100 :]
THIRD = FIRST[: 2 * BLOCK] + SECOND[2 * BLOCK :] + b"grown by some bytes"


@contextmanager
def one_worker() -> Iterator[None]:
    """Everything happens in one order."""
    with patch.object(process, "processors", lambda: -1):
        yield


def run_backup(base: Path, content: bytes, store: str) -> Revision:
    """What `backy backup` does, the repository being made where there is none."""
    source = base.parent / f"{base.name}.source"
    source.write_bytes(content)
    root = base / JOB
    if (root / "repository.json").exists():
        repository = Repository(root)
    else:
        repository = create(base, JOB, Settings(store=store, block_size=BLOCK))
    settings = {"disks": {"vda": str(source)}}
    return backup(repository, FileSource(**settings))


def read_all(repository: Repository) -> Disks:
    """Every disk of the history, read through the store."""
    found = {}
    for revision in repository.history():
        with repository.store.open(revision, "vda") as image:
            content = bytearray(image.size)
            image.readinto(0, memoryview(content))
            found[revision.id] = bytes(content)
    return found


@dataclass(frozen=True)
class Workload:
    """A command on a repository with these revisions already in it, newest last."""

    name: str
    before: tuple[bytes, ...]
    command: Callable[[Path, str], object]
    adds: bytes | None = None
    prepare: Callable[[Repository], object] = lambda repository: None
    removes: int = 0
    returns: int = 0


def _remove_oldest(repository: Repository) -> None:
    oldest = min(each.name for each in (repository.root / "revisions").iterdir())
    trash.remove(repository, [each for each in repository.history() if each.id == oldest])


def _opened(base: Path) -> Repository:
    return Repository(base / JOB)


WORKLOADS = (
    Workload("first-backup", (), lambda b, s: run_backup(b, FIRST, s), adds=FIRST),
    Workload("delta", (FIRST,), lambda b, s: run_backup(b, SECOND, s), adds=SECOND),
    Workload(
        "old-content-comes-back",
        (FIRST, SECOND),
        lambda b, s: run_backup(b, THIRD, s),
        adds=THIRD,
    ),
    Workload("remove", (FIRST, SECOND), lambda b, _: _remove_oldest(_opened(b)), removes=1),
    Workload(
        "undo",
        (FIRST, SECOND),
        lambda b, _: trash.undo(_opened(b)),
        prepare=_remove_oldest,
        returns=1,
    ),
    Workload(
        "purge",
        (FIRST, SECOND, THIRD),
        lambda b, _: trash.purge(_opened(b)),
        prepare=_remove_oldest,
    ),
    Workload(
        "tag-change",
        (FIRST, SECOND),
        lambda b, _: _opened(b).retag(_opened(b).history(), add={"new"}, drop=set()),
    ),
    Workload(
        "verify",
        (FIRST, SECOND),
        lambda b, _: list(verify(_opened(b), _opened(b).history())),
    ),
)


def prepared(base: Path, workload: Workload, store: str) -> Disks:
    """Make the repository that a workload begins with; give what every revision in it holds."""
    known = {}
    for content in workload.before:
        known[run_backup(base, content, store).id] = content
    if workload.before:
        workload.prepare(_opened(base))
    return known


def check(base: Path, workload: Workload, known: Disks, store: str) -> None:
    """The history is the old or the new one, byte for byte, and backy goes on from it unaided."""
    root = base / JOB
    if (root / "repository.json").exists():
        _check_history(Repository(root), workload, known)
    elif known:
        raise AssertionError("the repository is gone")
    revision = run_backup(base, THIRD, store)
    repository = Repository(root)
    assert read_all(repository)[revision.id] == THIRD
    trash.purge(repository)
    held = read_all(repository)
    assert held.pop(revision.id) == THIRD
    assert set(held.values()) <= {*known.values(), workload.adds}
    assert list(verify(repository, repository.history())) == []


def _check_history(repository: Repository, workload: Workload, known: Disks) -> None:
    held = read_all(repository)
    assert not repository.damaged
    ids = sorted(known)
    old = set(ids[1:] if workload.returns or workload.name == "purge" else ids)
    new = set(ids[workload.removes :]) if not workload.returns else set(ids)
    new = old if workload.name == "purge" else new
    added = held.keys() - known.keys()
    assert held.keys() - added in (old, new)
    assert not added or (
        workload.adds is not None and [held[each] for each in added] == [workload.adds]
    )
    assert all(held[each] == known[each] for each in held.keys() & known.keys())
    assert list(verify(repository, repository.history())) == []
