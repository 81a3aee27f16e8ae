"""Diff: the ranges that differ between two revisions. Reads only their indexes."""

from collections.abc import Iterator

from backy.model.extent import Extent, Kind, merge
from backy.model.revision import Revision
from backy.repository.repository import Repository


def diff(repository: Repository, old: Revision, new: Revision) -> Iterator[tuple[str, Extent]]:
    """The ranges of `new` that differ from `old`, as (disk, extent), in whole blocks.

    A disk that is only in `new` is listed completely, one that is only in `old` not at all. Only
    the pages that differ are read, and one that cannot be read counts as different. Raises
    DamagedError if an index is damaged.
    """
    for name in new.disks:
        with repository.reading(new), repository.store.open_index(new, name) as index:
            if name not in old.disks:
                yield from ((name, extent) for extent in merge(index.extents()))
                continue
            with repository.reading(old), repository.store.open_index(old, name) as old_index:
                for extent in merge(index.extents(old_index)):
                    if extent.kind is not Kind.SAME:
                        yield name, extent
