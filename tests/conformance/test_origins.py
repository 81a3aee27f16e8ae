"""Everything that damaged blocks can come back from keeps what an Origin promises."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from backy.operations.origin import LiveSource, Origin
from tests.conformance.origin import OriginSuite
from tests.lab.repositories import Made
from tests.memory_origin import Copy


def remember(made: Made, disks: Mapping[str, bytes]) -> None:
    """Have the repository remember files with these disks as its source."""
    paths = {name: made.base / f"{name}.img" for name in disks}
    for name, path in paths.items():
        path.write_bytes(disks[name])
    texts = {name: str(path) for name, path in paths.items()}
    made.repository.remember_source({"type": "file", "disks": texts})


class TestLiveSourceOfFiles(OriginSuite):
    @contextmanager
    def open(self, made: Made, disks: Mapping[str, bytes]) -> Iterator[Origin]:
        remember(made, disks)
        yield LiveSource(made.repository)

    @contextmanager
    def unreachable(self, made: Made) -> Iterator[Origin]:
        made.repository.remember_source({"type": "file", "disks": {"vda": "/nowhere/vda.img"}})
        yield LiveSource(made.repository)


class TestLiveSourceForOneSnapshotAtATime(OriginSuite):
    """A program's; the repository is locked meanwhile, so that no backup takes another one."""

    @contextmanager
    def open(self, made: Made, disks: Mapping[str, bytes]) -> Iterator[Origin]:
        remember(made, disks)
        answer = ", ".join(f'"{name}": {{"read": "{made.base}/{name}.img"}}' for name in disks)
        program = made.base / "source"
        program.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{{\"disks\": {{{answer}}}}}'\n")
        program.chmod(0o755)
        yield LiveSource(made.repository, lambda: {"type": "exec", "command": [str(program)]})

    @contextmanager
    def unreachable(self, made: Made) -> Iterator[Origin]:
        yield LiveSource(made.repository, lambda: {"type": "exec", "command": ["/nowhere/source"]})


class TestCopyInMemory(OriginSuite):
    @contextmanager
    def open(self, made: Made, disks: Mapping[str, bytes]) -> Iterator[Origin]:
        yield Copy(disks)

    @contextmanager
    def unreachable(self, made: Made) -> Iterator[Origin]:
        yield Copy(failure="no route to host")
