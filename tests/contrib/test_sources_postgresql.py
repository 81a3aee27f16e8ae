"""A real PostgreSQL that is written to all the time: every delta is a server that starts."""

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from backy.model.revision import Consistency
from tests.contrib.test_sources import Chain, Taken, revision, say

USER = "postgres"
MIB = 1024**2
WAL_SEGMENT = 16 * MIB
PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not PROGRAMS,
    reason="PostgreSQL is not installed, or only root can become its user",
)


def as_user(*command: str | Path, folder: Path, text: str = "") -> str:
    """What a command prints that runs as the user of the server."""
    ended = subprocess.run(
        ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", *command],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return ended.stdout


class Server:
    """A server with its data in `data` and its socket in `place`."""

    def __init__(self, data: Path, place: Path) -> None:
        self.data, self.place = data, place
        self.connection = f"host={place} dbname=postgres user={USER}"

    @contextmanager
    def running(self) -> Iterator[None]:
        self.control("start")
        try:
            yield
        finally:
            self.control("stop")

    def control(self, verb: str) -> None:
        options = f"-c listen_addresses= -k {self.place} -c shared_buffers=8MB -c wal_level=replica"
        more = ["-o", options, "-l", self.place / "log"] if verb == "start" else ["-m", "immediate"]
        program = PROGRAMS[0] / "pg_ctl"
        as_user(program, verb, "-w", "-t", "300", "-D", self.data, *more, folder=self.place)

    def ask(self, sql: str) -> str:
        return as_user("psql", "-XqAt", self.connection, "-c", sql, folder=self.place).strip()


def folder_of_user(path: Path) -> Path:
    path.mkdir(mode=0o700)
    shutil.chown(path, USER, USER)
    return path


@pytest.fixture
def server(own_reflink_folder: Path) -> Iterator[Server]:
    own_reflink_folder.parent.chmod(0o755)
    place = folder_of_user(own_reflink_folder / "place")
    data = own_reflink_folder / "data"
    own_reflink_folder.chmod(0o777)
    as_user(PROGRAMS[0] / "initdb", "-A", "trust", "-N", "-D", data, folder=place)
    server = Server(data, place)
    with server.running():
        server.ask("CREATE TABLE counter AS SELECT 0 AS value")
        server.ask("CREATE TABLE filling AS SELECT repeat('x', 500) FROM generate_series(1, 20000)")
        yield server


def chain_of(server: Server) -> Chain:
    """Backups by the program, which runs as root."""
    settings = {"data": str(server.data), "work": str(server.data.parent / "work")}
    return Chain("postgresql", **settings, connection=server.connection)


@contextmanager
def restored(taken: Taken, folder: Path) -> Iterator[Server]:
    """A server on what a person gets out of the archive with tar."""
    place = folder_of_user(folder / "restored")
    data = folder_of_user(place / "data")
    command = ["tar", "-x", "-f", "-", "--exclude=.filler", "-C", str(data)]
    subprocess.run(command, check=True, input=taken.contents["db"])
    server = Server(data, place)
    try:
        with server.running():
            yield server
    finally:
        shutil.rmtree(place)


@pytest.mark.parametrize("own_reflink_folder", ["xfs", "btrfs"], indirect=True)
def test_every_delta_is_a_server_that_has_what_was_committed(server: Server) -> None:
    chain = chain_of(server)
    folder = server.data.parent
    for number in range(3):
        server.ask(f"UPDATE counter SET value = {number}")
        if number == 2:
            server.ask("CHECKPOINT; INSERT INTO filling SELECT repeat('y', 500)")
        taken = chain.backup()
        assert taken.full_read_reasons == {}
        assert taken.consistency is Consistency.APPLICATION
        server.ask("UPDATE counter SET value = -1")
        with restored(taken, folder) as again:
            assert again.ask("SELECT value FROM counter") == str(number)
            assert int(again.ask("SELECT count(*) FROM filling")) == 20_000 + (number == 2)
            again.ask("SELECT count(*) FROM pg_class, pg_attribute")
    assert {path.suffix for path in (folder / "work").iterdir()} == {".json", ".tar"}
    assert {path.stem for path in (folder / "work").iterdir()} == {revision(2, {}).id}


def test_the_archive_shares_what_it_has_and_a_delta_reads_what_was_written(
    server: Server, tmp_path: Path
) -> None:
    before = shutil.disk_usage(server.data).used
    chain = chain_of(server)
    first = chain.backup()
    assert shutil.disk_usage(server.data).used - before < 24 * MIB
    chain.backup(is_kept=False)
    taken = chain.backup()
    assert taken.full_read_reasons == {}
    assert taken.data["db"] < 3 * WAL_SEGMENT + 8 * MIB
    assert first.same == {"db": 0}
    path = tmp_path / "db.tar"
    path.write_bytes(taken.contents["db"])
    with tarfile.open(path) as archive:
        members = [each.name for each in archive.getmembers() if each.name != ".filler"]
    assert len(members) == len(set(members))
    assert {"PG_VERSION", "backup_label", "global/pg_control", "base/1/PG_VERSION"} <= set(members)
    assert {"pg_wal", "pg_notify", "pg_replslot"} <= set(members)
    assert not {"postmaster.pid", "postmaster.opts"} & set(members)


def test_a_map_for_another_parent_is_refused_and_a_server_that_is_down_an_error(
    server: Server,
) -> None:
    chain = chain_of(server)
    chain.backup()
    chain.source.remove_all_except([])
    assert "the archive of the parent does not exist" in chain.backup().full_read_reasons["db"]
    settings = chain.source.settings.settings
    asked = {"revision": revision(1, {}).id, "parent": revision(7, {}).id, "disk": "db"}
    ended = say("postgresql", "extents", settings=settings, **asked)
    assert ended.returncode == 1
    assert ended.stdout == ""
    new: dict[str, object] = {"revision": revision(9, {}).id, "parent": None, "is_frozen": False}
    nowhere = settings | {"connection": "host=/nonexistent"}
    ended = say("postgresql", "snapshot", settings=nowhere, **new)
    assert ended.returncode == 1
    assert "psql ended with code 2" in ended.stderr
