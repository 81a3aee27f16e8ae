"""The live source is asked for what is damaged: which source that is, and when it is left alone."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from backy import sources
from backy.errors import ConfigError, SourceError
from backy.model.revision import Revision
from backy.operations.origin import LiveSource
from backy.sources import Request, Snapshot, TakenSnapshot
from tests.lab.repositories import Made
from tests.memory_source import FailingSource, MemorySource

DISK = b"disk" * 1000


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture
def revision(made: Made) -> Revision:
    return made.backup(DISK)


@pytest.mark.parametrize(
    ("settings", "failure"),
    [
        pytest.param({}, "the source has no type", id="none"),
        pytest.param(
            {"type": "file", "disks": {"vda": "/nowhere/vda.img"}},
            "opening the source /nowhere/vda.img: No such file or directory",
            id="gone",
        ),
        pytest.param(
            {"type": "no-such-plugin"},
            "a source of type 'no-such-plugin' is only used if the configuration names it",
            id="unknown",
        ),
        pytest.param(
            {"type": "file", "disks": 7},
            "the source's disks: Input should be a valid dictionary, not 7",
            id="nonsense",
        ),
    ],
)
def test_a_source_that_cannot_be_opened_is_named_and_no_error(
    made: Made, revision: Revision, settings: dict[str, object], failure: str
) -> None:
    made.repository.remember_source(settings)
    live = LiveSource(made.repository)
    assert live.read(revision, "vda", 0, "") is None
    assert live.failure == failure


def test_a_program_that_a_repository_names_is_not_run(
    made: Made, revision: Revision, tmp_path: Path
) -> None:
    command = ["/bin/sh", "-c", f"touch {tmp_path}/run"]
    made.repository.remember_source({"type": "exec", "command": command})
    live = LiveSource(made.repository)
    assert live.read(revision, "vda", 0, "") is None
    assert "'exec' is only used if the configuration names it" in live.failure
    assert not (tmp_path / "run").exists()


def test_a_configuration_that_cannot_be_read_is_named_and_no_error(
    made: Made, revision: Revision
) -> None:
    def settings() -> Mapping[str, object]:
        raise ConfigError("the configuration is no YAML")

    live = LiveSource(made.repository, settings)
    assert live.read(revision, "vda", 0, "") is None
    assert live.failure == "the configuration is no YAML"


def test_a_source_for_one_snapshot_is_left_to_the_backup_that_runs(
    made: Made, revision: Revision, tmp_path: Path
) -> None:
    program = tmp_path / "source"
    answer = '{"disks": {"vda": {"read": "%s/vda.img"}}}'
    program.write_text(
        f"#!/bin/sh\ncat >/dev/null\ntouch {tmp_path}/run\necho '{answer % tmp_path}'"
    )
    program.chmod(0o755)
    (tmp_path / "vda.img").write_bytes(DISK)
    live = LiveSource(made.repository, lambda: {"type": "exec", "command": [str(program)]})
    with made.repository.exclusive("backup"):
        assert live.read(revision, "vda", 0, "") is None
        assert "vm1: healing skipped, held by" in live.failure
        assert not (tmp_path / "run").exists()
    live.close()
    assert live.read(revision, "vda", 0, "") == DISK


def test_a_source_that_cannot_be_opened_is_not_tried_again_for_each_block(
    made: Made, revision: Revision
) -> None:
    tried = []

    def settings() -> Mapping[str, object]:
        tried.append(1)
        return {"type": "file", "disks": {"vda": "/nowhere/vda.img"}}

    live = LiveSource(made.repository, settings)
    for _ in range(3):
        live.read(revision, "vda", 0, "")
    assert len(tried) == 1


class Unreadable(FailingSource):
    """The disk vda can be read, vdb cannot."""

    def __init__(self, **_: object) -> None:
        super().__init__({"vda": DISK, "vdb": DISK})


class Stubborn(Unreadable):
    """Cannot remove the snapshot that it took."""

    @contextmanager
    def snapshot(self, request: Request) -> Iterator[TakenSnapshot]:
        with super().snapshot(request) as taken:
            yield taken
        raise SourceError("removing the snapshot: it is busy")


class Vanished(MemorySource):
    """Cannot open the disks of a snapshot that it took."""

    def __init__(self, **_: object) -> None:
        super().__init__({})

    @contextmanager
    def snapshot(self, _: Request) -> Iterator[TakenSnapshot]:
        yield TakenSnapshot(self.refused)

    def refused(self) -> AbstractContextManager[Snapshot]:
        raise SourceError("the image is gone")


@pytest.mark.parametrize(
    ("source", "failure"),
    [
        pytest.param(Unreadable, "input/output error", id="reading"),
        pytest.param(Stubborn, "input/output error", id="reading-and-closing"),
        pytest.param(Vanished, "the image is gone", id="opening"),
    ],
)
def test_whatever_fails_in_the_source_is_named_and_no_error(
    made: Made, monkeypatch: pytest.MonkeyPatch, source: type, failure: str
) -> None:
    monkeypatch.setitem(sources._BUILT_IN, "double", f"{__name__}:{source.__name__}")
    revision = made.backup(vda=DISK, vdb=DISK)
    live = LiveSource(made.repository, lambda: {"type": "double"})
    assert live.read(revision, "vda", 0, "") == (None if source is Vanished else DISK)
    assert live.read(revision, "vdb", 0, "") is None
    live.close()
    assert live.failure == failure
