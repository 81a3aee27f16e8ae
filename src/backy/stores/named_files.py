"""Files that are named by their content: AB/ABCD… in a folder, AB being the start of the name.

Chunks and pages are kept like this. That a name exists proves nothing: after a crash its file may
be torn.
"""

from __future__ import annotations

import errno
import threading

from backy.system import files, folders
from backy.system.files import Cache
from backy.system.place import Place

_NO_UNNAMED_FILES = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}  # open(2), O_TMPFILE


class NamedFiles:
    """Files in `folder`, named by digests, with `suffix` behind each. Several threads may use it.

    Contents of whole pages are written with O_DIRECT. Methods raise OSError.
    """

    def __init__(self, folder: Place, suffix: str = "", cache: Cache = Cache.SPARE) -> None:
        self.folder = folder
        self.suffix = suffix
        self._cache = cache

    def path(self, digest: str) -> Place:
        """Where the file of a digest is, or would be."""
        return self.folder / digest[:2] / f"{digest}{self.suffix}"

    def create(self, path: Place, content: bytes | memoryview) -> None:
        """Write a new file; nothing relies on it until the revision is published.

        XFS puts the files of each folder into another part of the medium, which scatters the
        chunks of a disk over all of it. So a file is written as an unnamed file of one folder,
        and then linked to its name; then they lie in the order in which they are written. Where
        the file system has no unnamed files (NFS), the file is written under its name.
        """
        try:
            with files.create_unnamed(self.folder, self._cache) as file:
                file.write(0, content)
                file.start_writeback()
                folders.link_unnamed(file, path)
        except FileNotFoundError:
            folders.make_folder(path.parent)
            self.create(path, content)
        except FileExistsError:  # another thread wrote the same content
            self.replace(path, content)
        except OSError as error:
            if error.errno not in _NO_UNNAMED_FILES:
                raise
            self._create_by_name(path, content)

    def _create_by_name(self, path: Place, content: bytes | memoryview) -> None:
        folders.make_folder(path.parent)
        try:
            file = files.create(path, self._cache)
        except FileExistsError:  # another thread writes the same content
            self.replace(path, content)
        else:
            with file:
                file.write(0, content)
                file.start_writeback()

    def replace(self, path: Place, content: bytes | memoryview) -> None:
        """Replace a file in one step: published revisions may rely on its name."""
        temporary = path.with_name(f".{path.name}.{threading.get_native_id()}")
        folders.remove_file(temporary)
        with files.create(temporary, self._cache) as file:
            file.write(0, content)
            file.sync()
        folders.rename(temporary, path)

    def repair(self, path: Place, content: bytes | memoryview) -> None:
        """Replace a file, or whatever is in its place, or create it; durable on return."""
        folders.make_folder(path.parent)
        self.replace_durably(path, content)
        folders.sync_folder(path.parent.parent)

    def replace_durably(self, path: Place, content: bytes | memoryview) -> None:
        """The same, in a folder that must exist."""
        if path.is_folder():
            folders.remove_tree(path)  # a file cannot be renamed over a folder
        self.replace(path, content)
        folders.sync_folder(path.parent)
