"""The disk door, with a journal: works on a real file system and records every effect.

Modes and FIEMAP are no effects: what a file may be used for does not depend on them here, and
`open_protected` and `physical_extents` open a File like all others. At the end the journal is
compared with the real tree, so that a new way to write cannot go past it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import ClassVar
from unittest.mock import patch

from backy.system import files, folders
from backy.system.files import AnyPath, Cache
from backy.system.place import Place
from tests.faults.journal import Effect, Journal


class RecordingFile(files.File):
    """A File that tells the journal what it did, once it has done it."""

    __slots__ = ("_node",)
    journal: ClassVar[Journal]

    def __init__(
        self, place: AnyPath, flags: int, cache: Cache = Cache.USE, mode: int = 0o600
    ) -> None:
        super().__init__(place, flags, cache, mode)
        path, journal = _by_name(place), self.journal
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            is_inside = journal.find(path) is not None
            self._node = journal.new_node(is_folder=False) if is_inside else None
            return
        self._node = journal.find(path)
        folder = journal.find(path.parent)
        if self._node is None and flags & os.O_CREAT and folder is not None:
            self._node = journal.new_node(is_folder=False)
            journal.record(Effect(links=((folder, path.name, self._node),)))
        elif flags & os.O_TRUNC:
            self._changed(size=0)

    def _changed(self, offset: int = 0, content: bytes = b"", size: int | None = None) -> None:
        if self._node is not None:
            self.journal.record(Effect(self._node, offset, content, size))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        super().write(offset, data)
        self._changed(offset, bytes(data))

    def zero(self, offset: int, length: int) -> None:
        super().zero(offset, length)
        self._changed(offset, bytes(length))

    def resize(self, size: int) -> None:
        super().resize(size)
        self._changed(size=size)

    def clone_from(self, original: files.File) -> bool:
        done = super().clone_from(original)
        if done:
            self._changed(content=os.pread(original.descriptor, original.size(), 0))
        return done

    def sync(self) -> None:
        super().sync()
        if self._node is not None:
            self.journal.sync(self._node)

    def barrier(self) -> None:
        super().barrier()
        self.journal.sync(None)


@contextmanager
def recording(root: Path) -> Iterator[Journal]:
    """In the body everything that backy does below `root` goes into the journal."""
    journal = Journal(root)
    RecordingFile.journal = journal
    real_make_folder, real_rename = folders.make_folder, folders.rename
    real_remove_file, real_remove_tree = folders.remove_file, folders.remove_tree
    real_remove_empty_folder, real_link_unnamed = folders.remove_empty_folder, folders.link_unnamed

    def make_folder(place: AnyPath, mode: int = 0o700) -> None:
        path = _by_name(place)
        missing = [each for each in (path, *path.parents) if not each.exists()]
        real_make_folder(place, mode)
        for each in reversed(missing):
            node = journal.new_node(is_folder=True)
            journal.record(Effect(links=((_there(journal, each.parent), each.name, node),)))

    def rename(old_place: AnyPath, new_place: AnyPath) -> None:
        real_rename(old_place, new_place)
        old, new = _by_name(old_place), _by_name(new_place)
        node = _there(journal, old)
        gone = (_there(journal, old.parent), old.name, None)
        journal.record(Effect(links=(gone, (_there(journal, new.parent), new.name, node))))

    def link_unnamed(file: files.File, place: Place) -> None:
        real_link_unnamed(file, place)
        assert isinstance(file, RecordingFile)
        folder = _there(journal, place.path.parent)
        journal.record(Effect(links=((folder, place.name, file._node),)))

    def remove_file(place: AnyPath) -> int:
        size = real_remove_file(place)
        _forget(journal, _by_name(place))
        return size

    def remove_empty_folder(place: AnyPath) -> None:
        real_remove_empty_folder(place)
        _forget(journal, _by_name(place))

    def remove_tree(place: AnyPath) -> None:
        path = _by_name(place)
        inside = sorted(path.rglob("*"), reverse=True)
        real_remove_tree(place)
        for each in (*inside, path):
            _forget(journal, each)

    with ExitStack() as stack:
        stack.enter_context(patch.object(files, "File", RecordingFile))
        doors = make_folder, rename, link_unnamed, remove_file, remove_tree, remove_empty_folder
        for door in doors:
            stack.enter_context(patch.object(folders, door.__name__, door))
        yield journal
    assert journal.missed() == []


def _by_name(path: AnyPath) -> Path:
    return path.path if isinstance(path, Place) else path


def _there(journal: Journal, path: Path) -> int:
    node = journal.find(path)
    assert node is not None, path
    return node


def _forget(journal: Journal, path: Path) -> None:
    if journal.find(path) is not None:
        journal.record(Effect(links=((_there(journal, path.parent), path.name, None),)))
