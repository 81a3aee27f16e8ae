"""backy mount: what was backed up can be read through the kernel, and nothing else happens."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from backy.model.revision import Revision
from backy.operations.backup import backup
from backy.repository.create import create
from backy.repository.records import Settings
from backy.repository.repository import Repository
from backy.units import KiB, MiB
from tests.cli.runner import Backy, Running, wait_for
from tests.golden import format_1
from tests.lab.needs import absent, need, no_mounts
from tests.lab.reflink import unmount
from tests.lab.repositories import names
from tests.lab.volumes import Mounts
from tests.memory_source import MemorySource

BLOCK = 64 * KiB
AS_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
FILES = {"domain.xml": b"<domain/>\n", "empty": b""}


@dataclass
class View:
    """A base directory, and the folder where it can be seen."""

    base: Path
    folder: Path
    contents: dict[str, Mapping[str, bytes]] = field(default_factory=dict)

    @property
    def backy(self) -> Backy:
        return Backy(self.base)

    def backup(self, job: str = "web1", store: str = "chunks", **disks: bytes) -> Revision:
        """A revision of these disks, with saved files beside them."""
        if (self.base / job).exists():
            repository = Repository(self.base / job)
        else:
            repository = create(self.base, job, Settings(store, BLOCK))
        revision = backup(repository, MemorySource(disks, files=FILES))
        self.contents[f"{job}/{revision.id}"] = disks
        return revision

    def disks(self) -> Iterator[tuple[Path, bytes]]:
        """Each disk as it can be seen, and what it has to be."""
        for name, disks in self.contents.items():
            for disk, content in disks.items():
                yield self.folder / name / f"{disk}.img", content

    @contextmanager
    def mounted(self, *options: str, env: Mapping[str, str] | None = None) -> Iterator[Running]:
        """While the body runs."""
        self.folder.mkdir(exist_ok=True)
        with self.backy.started("mount", self.folder, *options, env=env) as running:
            assert running.process.stdout is not None
            said = running.process.stdout.readline().decode()
            assert "mounted" in said, running.end()
            try:
                yield running
            finally:
                if self.is_mounted():
                    unmount(self.folder)

    def is_mounted(self) -> bool:
        """Whether something is, even if nobody serves it any more."""
        return f" {self.folder} " in Path("/proc/self/mountinfo").read_text()


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor, which can be closed though nobody serves the file any more."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        with suppress(OSError):
            os.close(descriptor)


def guest_disk(folder: Path) -> bytes:
    """An ext4 with a few files, mostly holes, with an end that is no whole block."""
    (folder / "tree/etc").mkdir(parents=True)
    (folder / "tree/etc/hostname").write_text("web1\n")
    (folder / "tree/data").write_bytes(random.Random(1).randbytes(3 * MiB + 17))
    subprocess.run(["mkfs.ext4", "-q", "-d", folder / "tree", folder / "disk", "24M"], check=True)
    return (folder / "disk").read_bytes() + b"e" * 3584


@pytest.fixture(scope="module", params=["chunks", "images"])
def view(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mounts: Mounts
) -> Iterator[View]:
    """Repositories of both formats, mounted for all tests that only look."""
    need(no_mounts(), absent("fusermount3", "mkfs.ext4"))
    own = tmp_path_factory.mktemp("mount")
    with ExitStack() as stack:
        plain = request.param == "images"
        folder = stack.enter_context(mounts.folder("xfs")) if plain else own
        (folder / "base").mkdir()
        view = View(folder / "base", own / "seen")
        format_1.unpacked(request.param, view.base)
        ids = sorted(path.name for path in (view.base / "vm1/revisions").glob("2*"))
        view.contents = {f"vm1/{name}": format_1.disks(n) for n, name in enumerate(ids, 1)}
        disk = guest_disk(own)
        view.backup("web1", request.param, vda=disk, small=b"x")
        view.backup("web1", request.param, vda=disk[: 5 * MiB] + bytes(MiB) + disk[6 * MiB :])
        stack.enter_context(view.mounted())
        yield view


@pytest.fixture
def own(tmp_path: Path) -> View:
    """For what changes it; not mounted yet."""
    need(no_mounts(), absent("fusermount3"))
    view = View(tmp_path / "base", tmp_path / "seen")
    view.backup(vda=random.Random(3).randbytes(300_000))
    return view


def test_all_jobs_revisions_and_files_are_there(view: View) -> None:
    found = {str(path.relative_to(view.folder)) for path in view.folder.glob("*/2*/*")}
    disks = {str(path.relative_to(view.folder)) for path, _ in view.disks()}
    saved = {f"{name}/{file}" for name in view.contents if "web" in name for file in FILES}
    assert found == disks | saved
    newest = max(name for name in view.contents if "web" in name)
    assert f"web1/{(view.folder / 'web1/latest').readlink()}" == newest
    for name in saved:
        assert (view.folder / name).read_bytes() == FILES[Path(name).name]


def test_every_disk_is_what_was_backed_up(view: View) -> None:
    for path, content in view.disks():
        assert path.read_bytes() == content


def test_random_reads_of_several_readers_equal_the_truth(view: View) -> None:
    disks = list(view.disks())

    def look(seed: int) -> None:
        chance = random.Random(seed)
        path, content = chance.choice(disks)
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for _ in range(60):
                start = chance.randrange(len(content) + 5000)
                length = chance.choice([1, 511, 4096, 70_000, 1_500_000])
                if not chance.randrange(3):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                wanted = content[start : start + length]
                assert os.pread(descriptor, length, start) == wanted, (path, start, length)
        finally:
            os.close(descriptor)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(look, range(8)))


def test_dd_reads_at_odd_offsets_and_past_the_page_cache(view: View) -> None:
    path, content = max(view.disks(), key=lambda disk: len(disk[1]))
    for flags in ("skip_bytes,count_bytes", "skip_bytes,count_bytes,nocache"):
        command = ["dd", f"if={path}", "bs=12345", "skip=1048573", "count=2500001"]
        done = subprocess.run([*command, f"iflag={flags}"], capture_output=True, check=True)
        assert done.stdout == content[1048573 : 1048573 + 2500001]


@pytest.mark.parametrize("sparse", ["auto", "always"])
def test_a_copy_has_the_holes_of_the_disk(view: View, tmp_path: Path, sparse: str) -> None:
    path, content = max(view.disks(), key=lambda disk: len(disk[1]))
    copy = tmp_path / "copy"
    subprocess.run(["cp", f"--sparse={sparse}", path, copy], check=True)
    assert copy.read_bytes() == content
    assert copy.stat().st_blocks * 512 < len(content) // 2
    assert path.stat().st_blocks * 512 < len(content) // 2


def data_of(descriptor: int, size: int) -> Iterator[range]:
    """The ranges that are no holes, as the kernel tells."""
    end = 0
    with suppress(OSError):  # ENXIO: there are no more
        while end < size:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            yield range(start, end)


def test_data_and_holes_are_those_of_the_disk(view: View) -> None:
    for path, content in view.disks():
        with path.open("rb") as file:
            told = list(data_of(file.fileno(), len(content)))
            assert os.lseek(file.fileno(), len(content) - 1, os.SEEK_HOLE) >= len(content) - 1
            with pytest.raises(OSError, match="No such device or address"):  # and no damage
                os.lseek(file.fileno(), -1, os.SEEK_DATA)
        blocks = {start for part in told for start in range(part.start, part.stop, BLOCK)}
        true = {at for at in range(0, len(content), BLOCK) if any(content[at : at + BLOCK])}
        assert blocks == true


def test_qemu_img_reads_it(view: View, tmp_path: Path) -> None:
    need(absent("qemu-img"))
    path = view.folder / "web1/latest/vda.img"
    truth = tmp_path / "truth"
    truth.write_bytes(dict(view.disks())[path.resolve()])
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", path, truth], check=True)
    qcow2 = tmp_path / "qcow2"
    convert: list[str | Path] = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", path, qcow2]
    subprocess.run(convert, check=True)
    compare = ["qemu-img", "compare", "-f", "qcow2", "-F", "raw"]
    subprocess.run([*compare, qcow2, truth], check=True)


def test_the_file_system_of_a_guest_can_be_mounted_read_only(view: View, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = next(path for path, _ in view.disks() if path.match("web1/*/vda.img"))
    subprocess.run(["mount", "-o", "ro,loop,norecovery", path, inside], check=True)
    try:
        assert (inside / "etc/hostname").read_text() == "web1\n"
        assert (inside / "data").read_bytes() == random.Random(1).randbytes(3 * MiB + 17)
    finally:
        unmount(inside)


def test_nothing_can_be_written(view: View) -> None:
    disk = view.folder / "web1/latest/vda.img"
    for change in (
        lambda: disk.open("r+b").close(),
        lambda: disk.chmod(0o600),
        disk.unlink,
        (view.folder / "web1/new").mkdir,
        lambda: (view.folder / "web1/new").write_bytes(b""),
    ):
        with pytest.raises(OSError, match="Read-only file system"):
            change()
    assert disk.stat().st_mode & 0o777 == 0o400
    assert (view.folder / "web1").stat().st_mode & 0o777 == 0o500


def test_what_does_not_exist_is_not_there(view: View) -> None:
    newest = (view.folder / "web1/latest").readlink()
    inside = ("vda", "vda.blocks", "revision.json", "vdz.img", "vda.img/x")
    others = ("nosuch", ".backy", "web1/2", "web1/chunks", "web1/lock")
    for name in (*others, *(f"web1/{newest}/{file}" for file in inside)):
        with pytest.raises((FileNotFoundError, NotADirectoryError)):
            (view.folder / name).stat()


def test_a_new_revision_appears_and_a_removed_one_goes_but_not_while_it_is_read(
    own: View,
) -> None:
    (old,) = own.contents
    with own.mounted():
        assert own.folder.joinpath(old).exists()
        new = own.backup(vda=b"new" * 1000)
        wait_for(lambda: (own.folder / "web1/latest").readlink().name == new.id, "the new one")
        assert (own.folder / "web1/latest/vda.img").read_bytes() == b"new" * 1000
        other = own.backup("web2", vda=b"other")
        assert (own.folder / "web2" / other.id / "vda.img").read_bytes() == b"other"
        with (own.folder / old / "vda.img").open("rb") as file:
            own.backy.ok("remove", "web1", "-r", Path(old).name)
            own.backy.ok("purge", "web1")
            wait_for(lambda: not (own.folder / old).exists(), "the old one is gone")
            assert file.read() == own.contents[old]["vda"]
        wait_for(lambda: "0 B" not in own.backy.ok("purge", "web1").out, "nobody reads it")
        assert len(own.backy.chunks_of("web1")) == 1


def test_a_repository_in_the_place_of_another_is_the_one_that_is_shown(own: View) -> None:
    with own.mounted():
        assert (own.folder / "web1/latest/vda.img").read_bytes() == next(own.disks())[1]
        (own.base / "web1").rename(own.base / "moved")
        new = own.backup(vda=b"new")
        assert names(own.folder) == ["moved", "web1"]
        wait_for(lambda: names(own.folder / "web1") == [new.id, "latest"], "the new repository")
        assert (own.folder / "web1/latest/vda.img").read_bytes() == b"new"


def test_a_pattern_that_no_job_matches_is_told_and_a_job_may_come(own: View) -> None:
    with own.mounted("--job", "web[2-9]") as running:
        assert names(own.folder) == []
        own.backup("web2", vda=b"disk")
        wait_for(lambda: names(own.folder) == ["web2"], "the job")
        running.signal(signal.SIGTERM)
        assert "has no job to show yet" in running.end().err


def test_only_jobs_that_match_a_pattern_are_shown(own: View) -> None:
    for job in ("web2", "db1", "db2"):
        own.backup(job, vda=b"disk")
    with own.mounted("--job", "web[2-9]", "--job", "*1"):
        assert names(own.folder) == ["db1", "web1", "web2"]
        with pytest.raises(FileNotFoundError):
            (own.folder / "db2").stat()


def test_other_users_read_nothing_unless_they_are_allowed_to(own: View) -> None:
    cat = ["cat", str(own.folder / "web1/latest/vda.img")]
    for path in (own.base.parent, *own.base.parent.parents):
        if path.stat().st_uid == os.getuid() and path != Path("/tmp"):
            path.chmod(0o755)
    with own.mounted():
        refused = subprocess.run([*AS_NOBODY, *cat], capture_output=True, check=False)
        assert b"Permission denied" in refused.stderr
    with own.mounted("--allow-other"):
        done = subprocess.run([*AS_NOBODY, *cat], capture_output=True, check=True)
        assert done.stdout == next(own.disks())[1]


def test_after_kill_9_it_can_be_mounted_again(own: View) -> None:
    with own.mounted() as running, opened(own.folder / "web1/latest/vda.img") as file:
        running.process.kill()
        running.process.wait()
        with pytest.raises(OSError, match="not connected"):
            names(own.folder)
        with pytest.raises(OSError, match="not connected"):
            os.pread(file, 1, 0)
        with own.mounted():
            assert own.contents.keys() == {
                str(path.relative_to(own.folder)) for path in own.folder.glob("*/2*")
            }
        assert not own.is_mounted()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts_it_even_while_a_file_is_open(own: View, number: int) -> None:
    with own.mounted() as running, opened(own.folder / "web1/latest/vda.img") as file:
        assert os.pread(file, 1, 0)
        running.signal(signal.Signals(number))
        assert running.end().code == 0
        assert not own.is_mounted()


def test_it_ends_when_somebody_unmounts_it_and_not_while_a_file_is_open(own: View) -> None:
    command = ["fusermount3", "-u", str(own.folder)]
    with own.mounted() as running:
        with (own.folder / "web1/latest/vda.img").open("rb") as file:
            refused = subprocess.run(command, capture_output=True, check=False)
            assert b"busy" in refused.stderr
            assert file.read() == next(own.disks())[1]
        subprocess.run(command, check=True)
        result = running.end()
        assert (result.code, result.err) == (0, "")


def test_it_says_to_systemd_that_it_is_ready(own: View) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("")
        with own.mounted(env={"NOTIFY_SOCKET": "@" + ear.getsockname()[1:].decode()}):
            assert ear.recv(100) == b"READY=1"


def test_a_folder_that_cannot_be_used_is_refused(own: View, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (own.base / "inside").mkdir()
    for folder, why in (
        (tmp_path, "is not empty"),
        (own.base / "inside", "in the base directory"),
        (tmp_path / "nosuch", "No such file"),
        (tmp_path / "file", "Not a directory"),
    ):
        assert why in own.backy.refuses(10, "mount", folder).message
    assert "no folder" in Backy(tmp_path / "nosuch").refuses(5, "mount", own.folder).message


def test_what_is_broken_stops_only_itself_and_is_logged(own: View) -> None:
    for job in ("broken", "torn"):
        own.backup(job, vda=b"disk")
    (own.base / "broken/repository.json").write_text("no JSON")
    (record,) = (own.base / "torn/revisions").glob("2*/revision.json")
    record.write_text("no JSON")
    for name in ("a\nb", "-rf", "lost+found", ".hidden"):
        shutil.copytree(own.base / "web1", own.base / name)
    (own.base / "loop").symlink_to("loop")
    (own.base / "file").touch()
    revision = next(iter(own.contents)).partition("/")[2]
    stored = own.base / "web1/revisions" / revision
    (stored / "link").symlink_to("/etc/passwd")
    os.mkfifo(stored / "fifo")
    (stored / "large").write_bytes(bytes(MiB + 1))
    with own.mounted() as running:
        assert set(names(own.folder)) == {"web1", "broken", "torn", "lost+found"}
        files = names(own.folder / "web1/latest")
        assert set(files) == {"vda.img", "large", *FILES}
        assert (own.folder / "web1/latest/vda.img").read_bytes() == own.contents[
            f"web1/{revision}"
        ]["vda"]
        for path in ("broken", f"torn/{record.parent.name}"):
            with pytest.raises(OSError, match="Input/output error"):
                names(own.folder / path)
        with pytest.raises(OSError, match="File too large"):
            (own.folder / "web1/latest/large").read_bytes()
        running.signal(signal.SIGTERM)
        said = running.end().err
    assert "/broken: " in said
    assert f"/torn/{record.parent.name}: " in said
    assert "left alone: 'a\\nb'" in said


def test_a_damaged_block_is_an_error_and_the_log_says_where(own: View) -> None:
    (revision,) = own.backy.revisions("web1")
    own.backy.chunk("web1", revision, 2).write_bytes(b"rot")
    path = own.folder / "web1" / revision / "vda.img"
    with own.mounted() as running:
        with path.open("rb") as file, pytest.raises(OSError, match="Input/output error"):
            file.read()
        with path.open("rb") as file:
            assert os.pread(file.fileno(), BLOCK, 0) == next(own.disks())[1][:BLOCK]
        running.signal(signal.SIGTERM)
        said = running.end().err
    assert f"/web1/{revision}/vda.img: block 2 (byte {2 * BLOCK})" in said
    assert "distrusted" in own.backy.ok("list", "web1").out


def test_a_damaged_block_is_healed_while_it_is_read(tmp_path: Path, reflink_folder: Path) -> None:
    own = View(reflink_folder / "base", tmp_path / "seen")
    content = random.Random(5).randbytes(4 * BLOCK)
    first = own.backup(store="images", vda=content)
    own.backup(store="images", vda=content)
    stored = own.base / "web1/revisions" / first.id / "vda.img"
    stored.chmod(0o600)
    with stored.open("r+b") as file:
        file.seek(BLOCK + 1)
        file.write(b"rot")
    with own.mounted() as running:
        assert (own.folder / "web1" / first.id / "vda.img").read_bytes() == content
        running.signal(signal.SIGTERM)
        said = running.end().err
    assert f"vda.img: bytes {BLOCK} to {2 * BLOCK} were damaged; a good copy was used" in said
    assert stored.read_bytes() == content
    assert "healed" in own.backy.ok("reports", "web1").out


def test_too_many_open_files_are_refused_and_the_others_go_on(own: View) -> None:
    with own.mounted(), ExitStack() as stack:
        path = own.folder / "web1/latest/vda.img"
        files = [stack.enter_context(path.open("rb")) for _ in range(200)]
        with pytest.raises(OSError, match="Too many open files in system"):
            files.extend(stack.enter_context(path.open("rb")) for _ in range(100))
        assert files[0].read() == next(own.disks())[1]
