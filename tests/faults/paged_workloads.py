"""Workloads over disks of two pages: pages that revisions share, lose, and get in format 1's place.

The first page has one block with data; the other one is as long as the disks of the workloads.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from backy.repository import trash
from backy.repository.repository import Repository
from tests.faults import workloads
from tests.faults.workloads import (
    BLOCK,
    FIRST,
    SECOND,
    THIRD,
    Workload,
    noise,
    opened,
    remove_oldest,
    restore_newest,
    run_backup,
    scrub_all,
    verify_all,
)
from tests.lab.indexes import COPIES, turn_back
from tests.lab.paged import LINES, blake3_of, hashes_of, place, text_of

FULL = noise("full", BLOCK) + bytes((LINES - 1) * BLOCK)
EMPTY = bytes(LINES * BLOCK)
WIDE_FIRST, WIDE_SECOND, WIDE_THIRD = FULL + FIRST, FULL + SECOND, EMPTY + THIRD
# What is damaged: a page that two revisions share, and one that only the second has.
BAD_PAGES = {blake3_of(text_of(hashes_of(page, BLOCK))): page for page in (FULL, SECOND)}


def _cut(repository: Repository, folder: str, names: list[str]) -> None:
    for name in names:
        path = place(repository.folder, folder, name)
        path.write_bytes(path.read_bytes()[:100])


def lose_pages(repository: Repository) -> None:
    """Both copies of two pages are cut short; the source is gone."""
    source = repository.folder.parent.with_suffix(".live")
    repository.remember_source({"type": "file", "disks": {"vda": str(source)}})
    for folder in COPIES:
        _cut(repository, folder, list(BAD_PAGES))


def lose_pages_of_source(repository: Repository) -> None:
    """The same, but the source still has their blocks."""
    repository.folder.parent.with_suffix(".live").write_bytes(WIDE_SECOND)
    lose_pages(repository)


def lose_pages_and_tell(repository: Repository) -> None:
    """The same, and a verify has found it."""
    lose_pages(repository)
    assert verify_all(repository)


def damage_one_copy(repository: Repository) -> None:
    """One copy of each page and of each index is bad; of each, another one than of the last."""
    first, second = BAD_PAGES
    _cut(repository, "pages", [first])
    _cut(repository, "twins", [second])
    oldest, newest = (repository.folder_of(each).path for each in repository.history().revisions)
    (oldest / "vda.blocks").write_text("not an index")
    record = json.loads((newest / "revision.json").read_text())
    _cut(repository, "twins", [record["disks"]["vda"]["index_hash"]])


def lossy(
    name: str,
    command: Callable[[Repository], object],
    prepare: Callable[[Repository], object],
    *,
    has_source: bool = False,
    reads_one: bool = False,
) -> Workload:
    """A command on two revisions of which pages are lost."""
    return Workload(
        name,
        (WIDE_FIRST, WIDE_SECOND),
        lambda b, _: command(opened(b)),
        prepare=prepare,
        is_damaged=True,
        has_source=has_source,
        reads_one=reads_one,
        bad=BAD_PAGES,
        newest=WIDE_SECOND,
        later=WIDE_THIRD,
    )


PAGED_WORKLOADS = (
    Workload(
        "delta-in-pages",
        (WIDE_FIRST, WIDE_SECOND),
        lambda b, s: run_backup(b, WIDE_THIRD, s),
        adds=WIDE_THIRD,
        newest=WIDE_SECOND,
        later=WIDE_FIRST,
    ),
    Workload(
        "purge-of-pages",
        (WIDE_FIRST, WIDE_SECOND, WIDE_THIRD),
        lambda b, _: trash.purge(opened(b)),
        prepare=remove_oldest,
        old=1,
        new=1,
        newest=WIDE_THIRD,
        later=WIDE_SECOND,
    ),
    Workload(
        "verify-that-mends-pages",
        (WIDE_FIRST, WIDE_SECOND),
        lambda b, _: verify_all(opened(b)),
        prepare=damage_one_copy,
        newest=WIDE_SECOND,
        later=WIDE_THIRD,
    ),
    Workload(
        "backup-that-mends-pages",
        (WIDE_FIRST, WIDE_SECOND),
        lambda b, s: run_backup(b, WIDE_THIRD, s),
        adds=WIDE_THIRD,
        prepare=damage_one_copy,
        newest=WIDE_SECOND,
        later=WIDE_FIRST,
    ),
    lossy("verify-that-heals-pages", verify_all, lose_pages_of_source, has_source=True),
    lossy("scrub-that-heals-pages", scrub_all, lose_pages_of_source, has_source=True),
    lossy("verify-that-cannot-heal-pages", verify_all, lose_pages),
    Workload(
        "restore-that-heals-pages",
        (WIDE_FIRST, WIDE_SECOND),
        lambda b, _: restore_newest(b),
        prepare=lose_pages_of_source,
        is_damaged=True,
        has_source=True,
        reads_one=True,
        bad=BAD_PAGES,
        newest=WIDE_SECOND,
        later=WIDE_THIRD,
    ),
    Workload(
        "backup-that-heals-pages",
        (WIDE_FIRST, WIDE_SECOND),
        lambda b, s: run_backup(b, WIDE_SECOND, s),
        adds=WIDE_SECOND,
        prepare=lose_pages_and_tell,
        is_damaged=True,
        bad=BAD_PAGES,
        newest=WIDE_SECOND,
        later=WIDE_THIRD,
    ),
    # Until the command has ended, the repository may have either format; the revisions stay.
    Workload(
        "backup-to-format-1",
        (FIRST, SECOND),
        lambda b, s: run_backup(b, THIRD, s),
        adds=THIRD,
        prepare=lambda repository: turn_back(repository.folder),
        later=FIRST,
    ),
    Workload(
        "backup-of-pages-to-format-1",
        (WIDE_FIRST, WIDE_SECOND),
        lambda b, s: run_backup(b, WIDE_THIRD, s),
        adds=WIDE_THIRD,
        prepare=lambda repository: turn_back(repository.folder),
        newest=WIDE_SECOND,
        later=WIDE_FIRST,
    ),
)
ALL_WORKLOADS = (*workloads.WORKLOADS, *PAGED_WORKLOADS)
