"""A repository of each store, made once, to be copied and made hostile."""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backy.model.revision import id_for
from backy.operations.backup import backup
from backy.operations.origin import LiveSource
from backy.operations.verify import verify
from backy.repository.create import create
from backy.repository.manifest import Settings, encode_settings
from backy.repository.repository import Repository
from backy.repository.restores import RestoreRecord, keep_restore
from backy.repository.trash import remove
from backy.sources.file import FileSource
from tests.fuzz import sandbox
from tests.fuzz.sandbox import Child, Sandbox
from tests.fuzz.verbs import prepare
from tests.lab.paged import block_hashes
from tests.lab.volumes import Mounts

BLOCK = 65536


@pytest.fixture(scope="session")
def child() -> Iterator[Child]:
    """Does work that may end badly."""
    with sandbox.child() as started:
        yield started


def made(folder: Path, store: str) -> Path:
    """A base directory with vm1: three revisions, one of them removed, one report, one scrub.

    The report is of a block that cannot be healed, so that its evidence is kept, too.
    """
    source = folder / "source.img"
    settings = {"type": "file", "disks": {"vda": str(source)}}
    (folder / "base").mkdir()
    repository = create(folder / "base", "vm1", Settings(store, BLOCK, 1, settings))
    for seed in (1, 2, 3):
        source.write_bytes(bytes([seed]) * BLOCK + os.urandom(BLOCK) + bytes(BLOCK + 1000))
        backup(repository, FileSource(disks={"vda": str(source)}))
    _damage(repository)
    for _ in verify(
        repository, repository.history().revisions[-1:], origins=[LiveSource(repository)]
    ):
        pass
    remove(repository, repository.history().revisions[:1])
    (repository.folder / "scrub.json").write_text('{"format": 1, "lengths": {}, "disks": {}}')
    now = datetime.now(UTC).replace(microsecond=0)
    name = id_for(now, "real")
    keep_restore(repository, RestoreRecord(name, now, name, "vda=/images/vm1.img", "root"))
    return folder


def _damage(repository: Repository) -> None:
    """Make the second block of the newest revision bad, for the source, too."""
    newest = repository.history().revisions[-1]
    path = repository.store.plain_path(newest, "vda").path
    if path.suffix == ".img":
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(BLOCK)
            file.write(b"bad")
        path.chmod(0o444)
    else:
        digest = block_hashes(repository.folder, path.parent)[1]
        chunk = repository.folder / "chunks" / digest[:2] / f"{digest}.zst"
        chunk.write_bytes(chunk.read_bytes()[:-5])
    source = Path(repository.settings.source["disks"]["vda"])
    source.write_bytes(bytes(source.stat().st_size))


@pytest.fixture(scope="session")
def first_chunks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `hostile` copies."""
    return made(tmp_path_factory.mktemp("fuzz"), "chunks")


@pytest.fixture(scope="session")
def first_images(mounts: Mounts) -> Path:
    """What `hostile_images` copies."""
    folder = mounts["xfs"] / "fuzz"
    folder.mkdir()
    return made(folder, "images")


def copied(first: Path, folder: Path, child: Child) -> Sandbox:
    """A sandbox of its own in `folder`."""
    shutil.copytree(first, folder)
    shutil.copytree(first / "base" / "vm1", folder / "neighbour")
    settings = {"type": "file", "disks": {"vda": str(folder / "source.img")}}
    repository = Repository(folder / "base" / "vm1")
    content = encode_settings(Settings(repository.settings.store, BLOCK, 1, settings))
    for root in (repository.folder, folder / "neighbour"):
        (root / "repository.json").write_bytes(content)
    made = Sandbox(child, folder)
    prepare(made)
    return made


@pytest.fixture
def hostile(first_chunks: Path, tmp_path: Path, child: Child) -> Sandbox:
    """A repository with chunks, not hostile yet."""
    return copied(first_chunks, tmp_path / "sandbox", child)


@pytest.fixture
def hostile_images(first_images: Path, mounts: Mounts, tmp_path: Path, child: Child) -> Sandbox:
    """A repository with images, not hostile yet."""
    return copied(first_images, mounts["xfs"] / tmp_path.name, child)
