"""Snapshots as a backup uses them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from backy.image.image import Image
from backy.model.extent import Kind
from backy.sources import Request, Snapshot, Source
from tests.conformance.image import read

NO_PARENTS: Mapping[str, bytes] = MappingProxyType({})


@contextmanager
def opened(source: Source, request: Request) -> Iterator[Snapshot]:
    """Take a snapshot and open it at once, where no guest has to be thawed in between."""
    with source.snapshot(request) as taken, taken.open() as snapshot:
        yield snapshot


def pulled(snapshot: Snapshot, parents: Mapping[str, bytes] = NO_PARENTS) -> dict[str, bytes]:
    """All its disks, where `parents` has what their parents held."""
    return {
        name: content_of(image, parents.get(name, b"")) for name, image in snapshot.disks.items()
    }


def content_of(image: Image, parent: bytes = b"") -> bytes:
    """All of a disk: read, or as in `parent` where it says that nothing changed."""
    content = bytearray(image.size)
    for each in image.extents():
        if each.kind is Kind.SAME:
            assert each.end <= len(parent)
            content[each.start : each.end] = parent[each.start : each.end]
        elif each.kind is Kind.DATA:
            content[each.start : each.end] = read(image, each.start, each.length)
    return bytes(content)
