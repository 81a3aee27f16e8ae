"""Files and block devices: all reads and writes of an open one go through here.

Together with `backy.system.folders` this is where tests inject faults and simulate power cuts. It
is also the only place that knows Linux: O_DIRECT, FICLONE, holes, syncfs. Functions raise OSError;
callers know which object failed, and say so. Offsets and lengths are bytes.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Self

from backy.model.extent import Extent, Kind
from backy.system.place import Place, closing

AnyPath = Path | Place

PAGE = 4096  # bytes; O_DIRECT needs offsets, lengths and buffers that are multiples of it
_FICLONE = 0x40049409  # ioctl_ficlone(2)
_FSGETXATTR, _FSSETXATTR = 0x801C581F, 0x401C5820  # linux/fs.h, on struct fsxattr
_FSXATTR = struct.Struct("=5I8x")  # flags, extent size, extents, project, copy-on-write extent size
_COWEXTSIZE = 0x10000  # FS_XFLAG_COWEXTSIZE
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602  # FS_IOC_, ioctl_iflags(2)
_NOCOW = 0x00800000  # FS_NOCOW_FL, chattr +C
_FIEMAP = 0xC020660B  # FS_IOC_FIEMAP, linux/fs.h
_FIEMAP_REQUEST = struct.Struct("=QQIIII")  # start, length, flags, mapped, count, reserved
_FIEMAP_EXTENT = struct.Struct("=QQQ16xI12x")  # logical and physical start, length, flags
_FIEMAP_COUNT = 128  # extents for each call
_FIEMAP_LAST = 0x1
_FIEMAP_SYNC = 0x1  # a flag of the request: first write back what is delayed
_FIEMAP_UNPLACED = 0xF8E  # unknown, delayed, encoded, encrypted, unaligned, inline, tail, unwritten
_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 0x01, 0x02, 0x10  # FALLOC_FL_, fallocate(2)
_CREATES_OR_LISTS = os.O_CREAT | os.O_DIRECTORY  # O_TMPFILE includes the latter
_NO_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY}
_NO_CLONE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EPERM}
_CACHESTAT = ctypes.c_long(451)  # the same number on every architecture
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Cache(Enum):
    """How a file uses the page cache.

    USE: as usual, for small files. SPARE: read from the cache what it has, but add nothing to it,
    so that a backup does not push out what the machine works with. AVOID: read from the medium
    itself, as a verification must.
    """

    USE = "use"
    SPARE = "spare"
    AVOID = "avoid"


class File:
    """An open file or block device. A context manager that closes it.

    Several threads may read and write at once.
    """

    __slots__ = ("_direct", "_is_written", "cache", "descriptor", "is_device", "path")

    def __init__(
        self, path: AnyPath, flags: int, cache: Cache = Cache.USE, mode: int = 0o600
    ) -> None:
        """Open it, or create it if `flags` say so. Refuses all but files, folders and devices.

        Refuses to open a device for writing that is mounted or in use.
        """
        self.path = path
        self.cache = cache
        self._is_written = False
        self.descriptor = _opened(path, flags | os.O_CLOEXEC, mode)
        self.is_device = stat.S_ISBLK(os.fstat(self.descriptor).st_mode)
        self._direct = -1
        if cache is not Cache.USE:
            self._direct = self._open_direct(flags)

    def _open_direct(self, flags: int) -> int:
        """Open the file again with O_DIRECT; -1 if its file system has none (FUSE, some NFS)."""
        access = flags & os.O_ACCMODE
        try:
            same = f"/proc/self/fd/{self.descriptor}"
            return os.open(same, access | os.O_DIRECT | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in _NO_DIRECT | {errno.ENOENT}:
                self.close()
                raise
            return -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it, if it is open. Raises OSError only if a write may be lost."""
        descriptors = [number for number in (self.descriptor, self._direct) if number >= 0]
        self.descriptor = self._direct = -1
        for descriptor in descriptors:
            try:
                os.close(descriptor)
            except OSError:
                if self._is_written:
                    raise

    def size(self) -> int:
        """The size in bytes, of block devices too (their st_size is 0)."""
        return os.lseek(self.descriptor, 0, os.SEEK_END)

    def status(self) -> os.stat_result:
        """The result of stat(2): identity, modification time, allocated blocks."""
        return os.fstat(self.descriptor)

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` from `offset`; return the length, which is less only at the end."""
        done = self._read_some(offset, buffer)
        while 0 < done < len(buffer):
            if self.cache is Cache.AVOID:
                os.posix_fadvise(self.descriptor, offset + done, PAGE, os.POSIX_FADV_DONTNEED)
            more = os.preadv(self.descriptor, [buffer[done:]], offset + done)
            if not more:
                break
            done += more
        return done

    def _read_some(self, offset: int, buffer: memoryview) -> int:
        whole = len(buffer) - len(buffer) % PAGE
        if self._direct < 0 or offset % PAGE or not whole:
            return os.preadv(self.descriptor, [buffer], offset)
        buffer = buffer[:whole]
        if self.cache is Cache.SPARE:
            with suppress(OSError):
                if self._is_cached(offset, whole):
                    return os.preadv(self.descriptor, [buffer], offset)
        try:
            return os.preadv(self._direct, [buffer], offset)
        except OSError as error:
            if error.errno not in _NO_DIRECT:
                raise
            # The buffer is not aligned, or the sectors are larger than a page.
            return os.preadv(self.descriptor, [buffer], offset)

    def _is_cached(self, offset: int, length: int) -> bool:
        """Whether the page cache has all of a range, by cachestat(2), which is new in Linux 6.5.

        Older kernels: whether it has the first page, by RWF_NOWAIT. That is only a guess, and since
        Linux 5.12 a miss starts a read-ahead.
        """
        cached = (ctypes.c_uint64 * 5)()
        asked = (ctypes.c_uint64 * 2)(offset, length)
        if _libc.syscall(
            _CACHESTAT, ctypes.c_uint(self.descriptor), asked, cached, ctypes.c_uint(0)
        ):
            return os.preadv(self.descriptor, [bytearray(PAGE)], offset, os.RWF_NOWAIT) == PAGE
        return int(cached[0]) * PAGE >= length

    def read_bytes(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`; fewer only at the end of the file."""
        pieces = []
        while length and (piece := os.pread(self.descriptor, length, offset)):
            pieces.append(piece)
            offset, length = offset + len(piece), length - len(piece)
        return b"".join(pieces)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data` at `offset`. It is durable after `sync` or a barrier."""
        self._is_written = True
        view = memoryview(data)
        direct = self._direct >= 0 and not (offset | len(view)) % PAGE
        while view:
            try:
                done = os.pwrite(self._direct if direct else self.descriptor, view, offset)
            except OSError as error:
                if not direct or error.errno not in _NO_DIRECT:
                    raise
                direct = False
                continue
            view, offset = view[done:], offset + done
            direct = direct and not done % PAGE

    def zero(self, offset: int, length: int) -> None:
        """Make a range read as zeroes, and free its space if possible."""
        if self.is_device and (rest := length % PAGE):
            # A length that is no multiple of a sector would make the kernel refuse all of it.
            self._write_zeroes(offset + length - rest, rest)
            length -= rest
        # A device that cannot free space may still be able to write zeroes by itself.
        for mode in (_PUNCH_HOLE, _ZERO_RANGE) if length else ():
            if not _libc.fallocate(self.descriptor, mode | _KEEP_SIZE, offset, length):
                return
            error = ctypes.get_errno()
            if error not in {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}:
                raise OSError(error, os.strerror(error))
        self._write_zeroes(offset, length)

    def _write_zeroes(self, offset: int, length: int) -> None:
        zeroes = memoryview(bytes(1 << 20))
        for start in range(offset, offset + length, len(zeroes)):
            self.write(start, zeroes[: offset + length - start])

    def resize(self, size: int) -> None:
        """Cut the file, or extend it with a hole."""
        os.ftruncate(self.descriptor, size)

    def clone_from(self, original: File) -> bool:
        """Share all extents of `original` (FICLONE); False if the file systems cannot."""
        _take_over_checksums(self.descriptor, original.descriptor)
        try:
            fcntl.ioctl(self.descriptor, _FICLONE, original.descriptor)
        except OSError as error:
            if error.errno not in _NO_CLONE:
                raise
            return False
        return True

    def unshare_only_what_is_written(self) -> None:
        """Have XFS allocate only as much as is written when it unshares an extent.

        By default it allocates 128 KiB and frees the rest minutes later: a delta of 288 MiB in
        writes of 64 KiB then takes 325 MiB. Other file systems ignore this.
        """
        with suppress(OSError):
            state = fcntl.ioctl(self.descriptor, _FSGETXATTR, bytes(_FSXATTR.size))
            flags, extent_size, extents, project, _ = _FSXATTR.unpack(state)
            wanted = _FSXATTR.pack(flags | _COWEXTSIZE, extent_size, extents, project, PAGE)
            fcntl.ioctl(self.descriptor, _FSSETXATTR, wanted)

    def extents(self, size: int) -> Iterator[Extent]:
        """Data and holes, over [0, size), as the file system reports them. A device is all data."""
        if self.is_device:
            yield Extent(0, size, Kind.DATA)
            return
        position = 0
        while position < size:
            data = self._seek(position, os.SEEK_DATA, size)
            if data > position:
                yield Extent(position, data - position, Kind.ZERO)
            position = self._seek(data, os.SEEK_HOLE, size)
            if position > data:
                yield Extent(data, position - data, Kind.DATA)

    def _seek(self, position: int, whence: int, size: int) -> int:
        if position >= size:
            return size
        try:
            return min(size, os.lseek(self.descriptor, position, whence))
        except OSError as error:
            if error.errno != errno.ENXIO:  # "no data beyond this position", lseek(2)
                raise
            return size

    def physical_extents(self, start: int, length: int) -> Iterator[tuple[int, int, int | None]]:
        """Where a range is on the medium, as (offset, length, physical offset), without holes.

        Equal physical offsets mean the same stored bytes. None means that the file system does not
        say where (compressed, or not yet written). Raises OSError if it cannot tell at all.
        """
        position, end = start, start + length
        while (left := end - position) > 0:
            # Without the sync a block that was just unshared still seems to be shared.
            header = _FIEMAP_REQUEST.pack(position, left, _FIEMAP_SYNC, 0, _FIEMAP_COUNT, 0)
            request = bytearray(header) + bytes(_FIEMAP_COUNT * _FIEMAP_EXTENT.size)
            fcntl.ioctl(self.descriptor, _FIEMAP, request)
            count = _FIEMAP_REQUEST.unpack_from(request)[3]
            extents = _FIEMAP_EXTENT.iter_unpack(request[_FIEMAP_REQUEST.size :])
            for logical, physical, size, flags in islice(extents, count):
                low, position = max(logical, start), logical + size
                is_placed = not flags & _FIEMAP_UNPLACED
                if low < min(position, end):
                    physical_low = physical + low - logical if is_placed else None
                    yield low, min(position, end) - low, physical_low
                if flags & _FIEMAP_LAST:
                    return
            if not count:
                return

    def start_writeback(self) -> None:
        """Have the kernel start to write it to the medium and drop it from the cache.

        Does not wait. Measured with 5,472 chunks of 360 KiB: the barrier at the end then takes
        0.02 s, not 1.8 s.
        """
        os.posix_fadvise(self.descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def note(self, text: str) -> None:
        """Replace the content of a lock file. For people only, so losing it is not an error."""
        with suppress(OSError):  # a purge must work on a full disk
            self.write(0, text.encode())
            self.resize(len(text.encode()))
        self._is_written = False

    def protect(self) -> None:
        """Make it read-only for everybody."""
        os.fchmod(self.descriptor, 0o444)

    def sync(self) -> None:
        """Wait until its content and size are durable."""
        os.fsync(self.descriptor)

    def barrier(self) -> None:
        """Wait until everything written to its file system is durable (syncfs).

        Raises OSError if any write-back failed since this file was opened (Linux 5.8 and later),
        so open it before the first write that must be durable.
        """
        if _libc.syncfs(self.descriptor):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _take_over_checksums(descriptor: int, original: int) -> None:
    """Let both have checksums, or neither (chattr +C): otherwise btrfs does not share extents.

    Only an empty file can be changed from one to the other.
    """
    with suppress(OSError):  # most file systems have no such flags
        flags, wanted = (
            int.from_bytes(fcntl.ioctl(each, _GETFLAGS, bytes(8)), sys.byteorder)
            for each in (descriptor, original)
        )
        if (flags ^ wanted) & _NOCOW:
            fcntl.ioctl(descriptor, _SETFLAGS, (flags ^ _NOCOW).to_bytes(8, sys.byteorder))


def buffer(length: int) -> memoryview:
    """A writable, page-aligned buffer, as O_DIRECT needs it."""
    return memoryview(mmap.mmap(-1, -(-length // PAGE) * PAGE))[:length]


def opened_by(path: AnyPath, flags: int, mode: int = 0o600) -> int:
    """A descriptor of what is at a path, by open(2); of a Place without following links."""
    with inodes_named(path):
        if isinstance(path, Place):
            return path.open(flags, mode)
        return os.open(path, flags, mode)


@contextmanager
def inodes_named(path: AnyPath) -> Iterator[None]:
    """Have an OSError in the body say so if `path` cannot be made for lack of inodes.

    The kernel's text, "No space left on device", is no help where `df` shows a lot of space.
    """
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            with suppress(OSError):
                near = path.root.descriptor if isinstance(path, Place) else path.parent
                now = os.statvfs(near)
                if now.f_files and not now.f_favail and now.f_bavail:
                    error.strerror = "no inodes left (df -i shows them)"
        raise


def _opened(path: AnyPath, flags: int, mode: int) -> int:
    """A descriptor of a file, folder or block device. Anything else is refused: a FIFO would block.

    A device in a Place is refused, too: its content belongs to somebody else.

    An existing file is examined by a descriptor before it is opened by that same descriptor, so
    nobody can replace it in between.
    """
    if flags & _CREATES_OR_LISTS:
        return opened_by(path, flags, mode)
    with closing(opened_by(path, os.O_PATH | os.O_CLOEXEC | flags & os.O_NOFOLLOW)) as handle:
        kind = os.fstat(handle).st_mode
        if stat.S_ISLNK(kind):
            raise OSError(errno.ELOOP, "it is a link")
        if isinstance(path, Place) and not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "not a regular file")
        if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
            raise OSError(errno.EINVAL, "neither a file nor a block device")
        if stat.S_ISBLK(kind) and flags & os.O_ACCMODE != os.O_RDONLY:
            flags |= os.O_EXCL  # fails for a device that is mounted or in use
        return os.open(f"/proc/self/fd/{handle}", flags & ~os.O_NOFOLLOW)


def open_to_read(path: AnyPath, cache: Cache = Cache.USE) -> File:
    """Open an existing file or block device."""
    return File(path, os.O_RDONLY, cache)


def open_to_write(path: AnyPath, cache: Cache = Cache.USE) -> File:
    """Open an existing file or block device. Refuses a device that is mounted or in use."""
    return File(path, os.O_RDWR, cache)


def open_protected(path: AnyPath) -> File:
    """Open a read-only file for writing. For everybody else it stays read-only."""
    with File(path, os.O_RDONLY | os.O_NOFOLLOW) as guard:
        os.fchmod(guard.descriptor, 0o600)
        try:
            return File(path, os.O_RDWR | os.O_NOFOLLOW, Cache.SPARE)
        finally:
            guard.protect()


def create(path: AnyPath, cache: Cache = Cache.USE) -> File:
    """Create a file. Raises FileExistsError if it exists."""
    return File(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, cache)


def create_unnamed(folder: AnyPath, cache: Cache = Cache.USE) -> File:
    """Create a file without a name on the file system of `folder`; closing it deletes it."""
    return File(folder, os.O_RDWR | os.O_TMPFILE, cache, 0o600)


def append_to_standard_output(data: bytes | memoryview) -> None:
    """Write all of `data` to standard output."""
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
