"""A place below a root is reached by descriptor: no link or renamed folder leads out of it."""

import errno
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backy.system.place import Place, Root


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """What must not be reached."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("secret")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Place:
    folder = tmp_path / "root"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "file").write_text("content")
    return Place.at(folder)


def read(place: Place) -> bytes:
    descriptor = place.open(os.O_RDONLY)
    try:
        return os.read(descriptor, 100)
    finally:
        os.close(descriptor)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_file_below_the_root_is_opened_made_and_looked_at(root: Place) -> None:
    file = root / "a" / "b" / "file"
    assert read(file) == b"content"
    assert file.exists()
    assert not file.is_folder()
    assert file.parent.is_folder()
    assert (file.name, str(file)) == ("file", f"{root.root.path}/a/b/file")
    new = file.with_name("new")
    assert not new.exists()
    os.close(new.open(os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
    assert new.status().st_mode & 0o777 == 0o640 & ~_umask()
    assert not (new / "below").exists()


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("component", [1, 2, 3])
@pytest.mark.parametrize("target", ["absolute", "relative"])
def test_a_link_in_any_place_on_the_way_is_not_followed(
    root: Place, outside: Path, component: int, target: str
) -> None:
    names = ("a", "b", "file")
    path = root.root.path.joinpath(*names[:component])
    twin = outside.joinpath(*names[component:])
    twin.parent.mkdir(parents=True, exist_ok=True)
    if component < 3:
        twin.write_text("secret")
    path.rename(root.root.path / "moved")
    place = outside if component < 3 else outside / "secret"
    path.symlink_to(place if target == "absolute" else os.path.relpath(place, path.parent))
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        read(root / "a" / "b" / "file")


def test_the_root_stays_the_folder_that_was_opened_first(root: Place, outside: Path) -> None:
    assert read(root / "a" / "b" / "file") == b"content"
    (outside / "a" / "b").mkdir(parents=True)
    (outside / "a" / "b" / "file").write_text("secret")
    root.root.path.rename(root.root.path.with_name("elsewhere"))
    outside.rename(root.root.path)
    assert read(root / "a" / "b" / "file") == b"content"


@given(name=st.sampled_from(["", ".", "..", "a/b", "/", "a\0b"]) | st.from_regex(r".*[/\0].*"))
def test_what_is_not_one_name_cannot_be_part_of_a_place(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a file"):
        Place(Root(Path("/"))) / name


def test_a_folder_that_is_exchanged_with_a_link_all_the_time_never_leads_out(
    root: Place, outside: Path
) -> None:
    (outside / "file").write_text("secret")
    folder, link = root.root.path / "a" / "b", root.root.path / "a" / "link"
    link.symlink_to(outside)
    stop = threading.Event()

    def exchange() -> None:
        hidden = folder.with_name("hidden")
        while not stop.is_set():
            folder.rename(hidden)
            link.rename(folder)
            folder.rename(link)
            hidden.rename(folder)

    thread = threading.Thread(target=exchange)
    thread.start()
    seen = set()
    try:
        for _ in range(3000):
            try:
                seen.add(read(root / "a" / "b" / "file"))
            except OSError as error:
                assert error.errno in {  # noqa: PT017
                    errno.ELOOP, errno.ENOENT, errno.ENOTDIR, errno.EXDEV, errno.EAGAIN,
                }  # fmt: skip
    finally:
        stop.set()
        thread.join()
    assert seen <= {b"content"}


def test_a_root_that_nobody_uses_any_more_gives_its_descriptor_back(root: Place) -> None:
    before, own = descriptors(), Place.at(root.path)
    assert read(own / "a" / "b" / "file") == b"content"
    assert descriptors() == before + 1
    del own
    assert descriptors() == before
