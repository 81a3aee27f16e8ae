"""Snapshots that are taken and opened at once, where no guest has to be thawed in between."""

from collections.abc import Iterator
from contextlib import contextmanager

from backy.sources import Request, Snapshot, Source


@contextmanager
def opened(source: Source, request: Request) -> Iterator[Snapshot]:
    """Take a snapshot and open it."""
    with source.snapshot(request) as taken, taken.open() as snapshot:
        yield snapshot
