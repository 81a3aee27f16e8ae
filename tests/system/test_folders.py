"""The door to names: folders, small files that are replaced in one step, and locks."""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backy.system import files, folders
from tests.lab import volumes
from tests.lab.needs import need

HOLDER = """if True:
    import sys
    from pathlib import Path
    from backy.system import folders
    path = Path(sys.argv[1])
    with folders.locked(path, make=not path.is_dir(), shared=sys.argv[2] == "shared"):
        print("locked", flush=True)
        sys.stdin.readline()
"""


@pytest.fixture
def small() -> Iterator[Path]:
    """A file system of 256 KiB that can be filled."""
    need(volumes.missing("tmpfs"))
    with volumes.file_system("tmpfs", 256 * 1024) as folder:
        yield folder


def names_in(folder: Path) -> list[str]:
    return [each.name for each in folder.iterdir()]


class Holder:
    """Another process that holds a lock until it is told to let go, or is killed."""

    def __init__(self, path: Path, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, path, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout
        assert self.process.stdout.readline() == "locked\n"

    def let_go(self) -> None:
        self.process.communicate("now\n")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.mark.parametrize("mode", [0o600, 0o755])
def test_a_small_file_is_written_with_its_mode_and_nothing_beside_it(
    tmp_path: Path, mode: int
) -> None:
    folders.write_file(tmp_path / "record", b"content", mode)
    assert (tmp_path / "record").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "record").stat().st_mode) == mode
    assert names_in(tmp_path) == ["record"]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    folders.write_file(tmp_path / "record", b"the old content")
    with files.open_to_read(tmp_path / "record") as old:
        folders.write_file(tmp_path / "record", b"new")
        assert old.read_bytes(0, 99) == b"the old content"
    assert folders.read_file(tmp_path / "record", 99) == b"new"
    assert names_in(tmp_path) == ["record"]


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".record.new").write_bytes(b"a long torn content of a writer that was killed")
    folders.write_file(tmp_path / "record", b"new")
    assert (tmp_path / "record").read_bytes() == b"new"
    assert names_in(tmp_path) == ["record"]


def test_a_file_that_is_replaced_where_no_space_is_left_keeps_its_content(small: Path) -> None:
    folders.write_file(small / "record", b"old")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        folders.write_file(small / "record", bytes(1024 * 1024))
    assert (small / "record").read_bytes() == b"old"


def test_a_write_that_failed_gives_its_space_back(small: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        folders.write_file(small / "record", bytes(1024 * 1024))
    assert names_in(small) == []


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_small_file_is_read_whole(tmp_path: Path, length: int) -> None:
    (tmp_path / "record").write_bytes(b"x" * length)
    assert folders.read_file(tmp_path / "record", 100) == b"x" * length


def test_a_file_that_is_longer_than_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "record").write_bytes(b"x" * 101)
    with pytest.raises(OSError, match="larger than 100 bytes") as caught:
        folders.read_file(tmp_path / "record", 100)
    assert caught.value.errno == errno.EFBIG


def test_a_device_without_end_is_refused() -> None:
    with pytest.raises(OSError, match="not a regular file"):
        folders.read_file(Path("/dev/zero"), 100)


def test_a_folder_that_is_there_is_made_again_without_harm(tmp_path: Path) -> None:
    folders.make_folder(tmp_path / "a" / "b" / "c")
    (tmp_path / "a" / "file").touch()
    folders.make_folder(tmp_path / "a")
    assert folders.list_folder(tmp_path / "a") == ["b", "file"]
    with pytest.raises(FileExistsError):
        folders.make_folder(tmp_path / "a" / "file")


def test_names_are_listed_in_order_and_a_missing_folder_has_none(tmp_path: Path) -> None:
    for name in ("b", ".hidden", "a", "B"):
        (tmp_path / name).touch()
    assert folders.list_folder(tmp_path) == [".hidden", "B", "a", "b"]
    assert folders.list_folder(tmp_path / "none") == []
    with pytest.raises(NotADirectoryError):
        folders.list_folder(tmp_path / "a")


def test_removing_a_file_tells_its_size_and_again_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 321)
    assert folders.remove_file(tmp_path / "file") == 321
    assert folders.remove_file(tmp_path / "file") == 0


def test_removing_a_link_leaves_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 321)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert folders.remove_file(tmp_path / "link") != 321
    assert names_in(tmp_path) == ["file"]


def test_a_tree_goes_and_what_its_links_point_to_stays(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    (outside / "folder").mkdir(parents=True)
    (outside / "folder" / "file").touch()
    (tree / "deep" / "deeper").mkdir(parents=True)
    (tree / "deep" / "read-only").touch(mode=0o444)
    (tree / "to-folder").symlink_to(outside / "folder", target_is_directory=True)
    (tree / "deep" / "to-file").symlink_to(outside / "folder" / "file")
    folders.remove_tree(tree)
    assert not tree.exists()
    assert (outside / "folder" / "file").exists()


def test_a_link_in_the_place_of_a_tree_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    (tmp_path / "tree").symlink_to(tmp_path / "outside", target_is_directory=True)
    folders.remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").is_symlink()
    assert (tmp_path / "outside" / "file").exists()


def test_only_an_empty_folder_is_removed_as_one(tmp_path: Path) -> None:
    (tmp_path / "full" / "file").mkdir(parents=True)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
        folders.remove_empty_folder(tmp_path / "full")
    folders.remove_empty_folder(tmp_path / "full" / "file")
    assert names_in(tmp_path / "full") == []


def test_a_folder_is_renamed_with_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "file").write_bytes(b"x")
    folders.rename(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new" / "file").read_bytes() == b"x"
    assert names_in(tmp_path) == ["new"]


def test_a_full_folder_is_not_replaced_by_a_rename(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match=os.strerror(errno.ENOTEMPTY)):
        folders.rename(tmp_path / "old", tmp_path / "new")
    assert (tmp_path / "new" / "file").read_text() == "new"


@pytest.fixture(params=["file", "folder"])
def lock(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What can be locked."""
    path = tmp_path / "lock"
    if request.param == "folder":
        path.mkdir()
    return path


@pytest.mark.parametrize(
    ("theirs", "ours", "together"),
    [
        pytest.param("shared", "shared", True, id="readers-do-not-exclude-each-other"),
        pytest.param("shared", "exclusive", False, id="a-reader-excludes-a-writer"),
        pytest.param("exclusive", "shared", False, id="a-writer-excludes-a-reader"),
        pytest.param("exclusive", "exclusive", False, id="a-writer-excludes-a-writer"),
    ],
)
def test_who_may_hold_a_lock_beside_whom(
    lock: Path, theirs: str, ours: str, together: bool
) -> None:
    holder = Holder(lock, theirs)
    try:
        if together:
            with folders.locked(lock, make=not lock.is_dir(), shared=ours == "shared"):
                pass
        else:
            with (
                pytest.raises(BlockingIOError),
                folders.locked(lock, make=not lock.is_dir(), shared=ours == "shared"),
            ):
                pass
    finally:
        holder.let_go()
    with folders.locked(lock, make=not lock.is_dir()):
        pass


def test_a_lock_goes_with_a_killed_process(lock: Path) -> None:
    Holder(lock, "exclusive").kill()
    with folders.locked(lock, make=not lock.is_dir()):
        pass


def test_the_patient_get_the_lock_when_it_is_free(lock: Path) -> None:
    holder = Holder(lock, "exclusive")
    assert holder.process.stdin
    holder.process.stdin.write("now\n")
    holder.process.stdin.flush()
    with folders.locked(lock, make=not lock.is_dir(), patience_seconds=60):
        pass
    holder.process.communicate()


def test_patience_ends(lock: Path) -> None:
    holder = Holder(lock, "exclusive")
    try:
        with (
            pytest.raises(BlockingIOError),
            folders.locked(lock, make=not lock.is_dir(), patience_seconds=0.1),
        ):
            pass
    finally:
        holder.let_go()


def test_a_lock_ends_with_an_exception(lock: Path) -> None:
    with pytest.raises(ZeroDivisionError), folders.locked(lock, make=not lock.is_dir()):
        raise ZeroDivisionError
    Holder(lock, "exclusive").let_go()


def test_who_has_locked_a_file_can_write_to_it(tmp_path: Path) -> None:
    with folders.locked(tmp_path / "lock", make=True) as file:
        file.note("held by somebody else")
        file.note("held by me")
        assert folders.read_file(tmp_path / "lock", 99) == b"held by me"
