"""The locks with which QEMU and its tools keep two programs from writing to one image."""

from __future__ import annotations

import fcntl
import os
import struct

from backy.system.files import File

_FLOCK = struct.Struct("hhqqi4x")  # type, whence, start, length, process
_ARE_LOCKED = (100, 200)  # block/file-posix.c: a byte for each right that is used, or refused
_LENGTH = 64


def is_open_in_qemu(file: File) -> bool:
    """Whether a QEMU, or one of its tools, has this file or device open, perhaps as a backing file.

    False where the file system has no locks.
    """
    for start in _ARE_LOCKED:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, _LENGTH, 0)
        try:
            found = fcntl.fcntl(file.descriptor, fcntl.F_OFD_GETLK, wanted)
        except OSError:
            return False
        if _FLOCK.unpack(found)[0] != fcntl.F_UNLCK:
            return True
    return False
