"""The source nbd, from real servers to revisions."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backy.errors import ConfigError, SourceError
from backy.model.extent import Kind
from backy.model.revision import Consistency, Disk, Revision
from backy.operations.backup import backup
from backy.sources import Request, Snapshot, Source, open_source
from backy.sources.nbd import NbdSource
from tests.conformance.source import SourceSuite
from tests.lab.repositories import Made
from tests.memory_source import sample
from tests.nbd.scripted import Script, everything, scripted
from tests.nbd.servers import (
    Argument,
    StorageDaemon,
    content_of,
    nbdkit,
    qemu_nbd,
    storage_daemon,
    unix_server,
    write,
)
from tests.snapshots import opened

MIB = 1024**2
PARENT = "20261123T004938Z-x7k2"
TEMPLATE = "backy-{parent}"


class TestNbdkit(SourceSuite):
    consistency = Consistency.NONE
    settings: Mapping[str, object] = {}

    @contextmanager
    def open(self, disks: Mapping[str, bytes], folder: Path) -> Iterator[Source]:
        with ExitStack() as stack:
            uris = {}
            for name, content in disks.items():
                path = folder / f"{name}.img"
                path.write_bytes(content)
                uris[name] = stack.enter_context(unix_server(*self.command(path)))
            yield NbdSource(disks=uris, **self.settings)

    def command(self, path: Path) -> tuple[Argument, ...]:
        return nbdkit("file", path)


class TestQemuNbd(TestNbdkit):
    consistency = Consistency.CRASH
    settings: Mapping[str, object] = {"is-snapshot": True}

    def command(self, path: Path) -> tuple[Argument, ...]:
        return qemu_nbd("--format=raw", path)


def revision(**sizes: int) -> Revision:
    """A parent with disks of these sizes."""
    disks = {name: Disk(size, 65536, "", 0, 0, 0) for name, size in sizes.items()}
    return Revision(PARENT, datetime.now(UTC), None, 0, Consistency.CRASH, disks)


def request(parent: Revision | None = None, *, is_frozen: bool = False) -> Request:
    return Request("20261123T005938Z-x7k3", parent, is_frozen)


@contextmanager
def taken(*sizes: int, asked: Request | None = None, **settings: object) -> Iterator[Snapshot]:
    """A snapshot of disks vda, vdb and so on, whose server says that nothing changed at all."""
    unchanged = {f"qemu:dirty-bitmap:backy-{PARENT}": everything}
    with ExitStack() as stack:
        uris = {
            f"vd{letter}": stack.enter_context(scripted(Script(bytes(size), contexts=unchanged)))
            for letter, size in zip("abc", sizes, strict=False)
        }
        source = NbdSource(disks=uris, **settings)
        yield stack.enter_context(opened(source, asked or request()))


def kinds(snapshot: Snapshot, disk: str = "vda") -> set[Kind]:
    return {each.kind for each in snapshot.disks[disk].extents()}


def test_a_bitmap_of_the_parent_is_believed() -> None:
    asked = request(revision(vda=5000, vdb=6000))
    with taken(5000, 6000, asked=asked, bitmap=TEMPLATE) as snapshot:
        assert kinds(snapshot, "vda") == kinds(snapshot, "vdb") == {Kind.SAME}
        assert snapshot.full_read_reasons == {}


@pytest.mark.parametrize(
    ("bitmap", "parent", "why"),
    [
        pytest.param("other-{parent}", revision(vda=5000), "has no bitmap other-2026", id="name"),
        pytest.param(TEMPLATE, revision(vda=4999), "it was resized", id="grown"),
        pytest.param(TEMPLATE, revision(vda=5001), "it was resized", id="shrunk"),
        pytest.param(TEMPLATE, revision(vdb=5000), None, id="new-disk"),
        pytest.param(TEMPLATE, None, None, id="no-parent"),
        pytest.param(None, revision(vda=5000), None, id="not-configured"),
    ],
)
def test_where_there_is_no_bitmap_of_the_parent_all_is_read(
    bitmap: str | None, parent: Revision | None, why: str | None
) -> None:
    with taken(5000, asked=request(parent), bitmap=bitmap) as snapshot:
        assert kinds(snapshot) == {Kind.DATA}
        assert set(snapshot.full_read_reasons) == ({"vda"} if why else set())
        assert (why or "") in snapshot.full_read_reasons.get("vda", "")


@pytest.mark.parametrize(
    ("sizes", "is_snapshot", "is_frozen", "expected"),
    [
        pytest.param([512], False, False, Consistency.NONE, id="in-use"),
        pytest.param([512], False, True, Consistency.NONE, id="thawed-before-it-is-read"),
        pytest.param([512], True, False, Consistency.CRASH, id="snapshot"),
        pytest.param([512, 512], True, False, Consistency.NONE, id="snapshots-of-two-moments"),
        pytest.param([512, 512], True, True, Consistency.CRASH, id="snapshots-while-frozen"),
    ],
)
def test_consistency_is_what_the_administrator_knows_of_the_exports(
    sizes: list[int], is_snapshot: bool, is_frozen: bool, expected: Consistency
) -> None:
    asked = request(is_frozen=is_frozen)
    with taken(*sizes, asked=asked, is_snapshot=is_snapshot) as snapshot:
        assert snapshot.consistency is expected


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"disks": {}}, id="no-disks"),
        pytest.param({"disks": {"vda": "/dev/vda"}}, id="a-path"),
        pytest.param({"disks": {"../x": "nbd://h/x"}}, id="bad-name"),
        pytest.param({"disks": {"vda": "nbd://h/x"}, "bitmap": "backy"}, id="any-bitmap"),
        pytest.param({"disks": {"vda": "nbd://h/x"}, "bitmap": "{parent}{parent}"}, id="twice"),
        pytest.param({"disks": {"vda": "nbd://h/x"}, "uri": "nbd://h/x"}, id="foreign-setting"),
    ],
)
def test_settings_that_are_wrong_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        open_source({"type": "nbd", **settings})


def test_an_export_that_is_not_there_ends_the_others() -> None:
    with scripted(Script(bytes(512))) as uri:
        source = NbdSource(disks={"vda": uri, "vdb": "nbd+unix:///?socket=/nowhere"})
        with pytest.raises(SourceError, match="/nowhere"), opened(source, request()):
            pytest.fail("a snapshot was taken")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


@pytest.fixture(params=["qcow2", "raw"])
def daemon(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StorageDaemon]:
    """A disk of 16 MiB, the first half of which has data."""
    path = tmp_path / "disk"
    subprocess.run(["qemu-img", "create", "-q", "-f", request.param, path, "16M"], check=True)
    with storage_daemon(path, request.param) as daemon:
        write(daemon.uri("guest"), *(f"write -P {n + 1} {n}M 1M" for n in range(8)))
        yield daemon


def begin_bitmap(daemon: StorageDaemon, name: str) -> None:
    daemon.ask("block-dirty-bitmap-add", node="disk", name=name, granularity=65536)


def test_deltas_from_bitmaps_equal_the_disk(made: Made, daemon: StorageDaemon) -> None:
    last = backup(made.repository, NbdSource(disks={"vda": daemon.uri("guest")}))
    for step in range(3):
        begin_bitmap(daemon, f"backy-{last.id}")
        commands = [f"write -P {90 + step} {2 * step}M 70k", f"write -z {2 * step + 1}M 128k"]
        write(daemon.uri("guest"), *commands)
        uri = daemon.export(f"export-{step}", f"backy-{last.id}")
        last = backup(made.repository, NbdSource(disks={"vda": uri}, bitmap=TEMPLATE))
        assert made.read(last) == content_of(uri)
        assert last.warnings == ()
        assert last.disks["vda"].changed == 4 * 65536
        assert last.disks["vda"].read <= 3 * MIB  # the changes, and a sample of what is the same


def test_a_bitmap_of_another_revision_is_not_believed(made: Made, daemon: StorageDaemon) -> None:
    """It was begun too late: what was written before it is not in it."""
    first = backup(made.repository, NbdSource(disks={"vda": daemon.uri("guest")}))
    write(daemon.uri("guest"), "write -P 77 0 1M")
    begin_bitmap(daemon, f"backy-{PARENT}")
    uri = daemon.export("export", f"backy-{PARENT}")
    second = backup(made.repository, NbdSource(disks={"vda": uri}, bitmap=TEMPLATE))
    assert made.read(second) == content_of(uri)
    [warning] = second.warnings
    assert f"all of disk vda was read: {uri} has no bitmap backy-{first.id}" in warning


@pytest.mark.parametrize("by", [1, -1], ids=["grown", "shrunk"])
def test_an_export_that_was_resized_is_read_whole(made: Made, tmp_path: Path, by: int) -> None:
    old, new = sample(4 * MIB), sample((4 + by) * MIB, seed=3)
    for name, content in (("old", old), ("new", new)):
        (tmp_path / name).write_bytes(content)
    with unix_server(*nbdkit("file", tmp_path / "old")) as uri:
        first = backup(made.repository, NbdSource(disks={"vda": uri}))
    nothing = {f"qemu:dirty-bitmap:backy-{first.id}": everything}
    with scripted(Script(new, contexts=nothing)) as uri:
        second = backup(made.repository, NbdSource(disks={"vda": uri}, bitmap=TEMPLATE))
    assert made.read(second) == new
    assert any("it was resized" in each for each in second.warnings)


def test_a_server_that_fails_in_the_middle_leaves_the_history_as_it_was(
    made: Made, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(sample(4 * MIB))
    command = nbdkit("file", tmp_path / "disk", "--filter=error", "error-pread-rate=100%")
    with unix_server(*command, f"error-pread-file={tmp_path}/broken", "error-pread=EIO") as uri:
        source = NbdSource(disks={"vda": uri})
        first = backup(made.repository, source)
        (tmp_path / "broken").touch()
        with pytest.raises(SourceError, match=rf"{re.escape(uri)}: reading .* at byte "):
            backup(made.repository, source)
        assert made.ids() == [first.id]
        (tmp_path / "broken").unlink()
        assert made.read(backup(made.repository, source)) == sample(4 * MIB)
