"""A small process that does hostile work in forks of itself: python -m tests.fuzz.child.

A request is a line of JSON on standard input, its answer one on standard output; the other side
is tests.fuzz.sandbox. A fork costs milliseconds where a new Python costs half a second, and what
it takes of memory is measured from a clean start: pages of the kernel, not what one allocator
knows of.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from backy.cli.app import program
from backy.cli.commands import COMMANDS
from backy.cli.execute import run
from backy.errors import BackyError
from backy.model.revision import Disk
from backy.operations import backup, diff, heal, restore, scrub, verify
from backy.repository import quarantine_reports, trash
from backy.repository.records import read_revision, read_settings
from backy.repository.repository import Repository
from backy.sources import file
from backy.stores import chunks, images
from backy.stores.blocks import checked_index
from backy.stores.data import data_bytes
from backy.stores.index import PAGE_LINES, Index
from backy.stores.pages import Pages
from backy.stores.used import Used
from backy.stores.zstd import ZstdCodec
from backy.system import place as places
from backy.system.files import Cache
from backy.system.place import Place
from tests.lab.exchange import exchange

CODEC = ZstdCodec(1)
MOMENTS = [0]
NEW = "20260101T000000Z-zzzz"
LOADED = [backup, diff, file, heal, images, restore, trash, verify]  # what commands import late
_SECONDS = 120  # matters only where something hangs
_POPULATE_READ = 22  # MADV_POPULATE_READ, madvise(2)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_READS = {"open", "os.listdir", "os.scandir"}
_CHANGES = {"os.chmod", "os.chown", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime"}
_PAIRS = {"os.link", "os.rename", "os.symlink"}


def index(path: str, size: int, block_size: int, index_hash: str, pages: str = "") -> None:
    """Everything that is done with an index: of format 2 if there is a folder with its pages."""
    disk, shelf = Disk(size, block_size, index_hash, 0, 0, 0), None
    if pages:
        shelf = Pages(Place.at(Path(pages)), CODEC)
    with checked_index(Place.at(Path(path)), disk, CODEC, shelf) as opened:
        use(opened)


def use(opened: Index) -> None:
    """What reads an index, all of it. Raises what was wrong with the first block."""
    for _ in opened.find([CODEC.digest(b"nowhere")]):
        pass
    for _ in opened.extents():
        pass
    used = Used(has_named_blocks=True)
    used.add(opened, "0" * 64)
    for number in sorted({0, opened.blocks // 2, opened.blocks - 1}):
        opened.digest(number)
        opened.check_page(number // PAGE_LINES)
    data_bytes(opened)


def chunk(folder: str, digest: str, block_size: int) -> None:
    """What reads a block of a store of chunks."""
    store = chunks.ChunkStore(Place.at(Path(folder)), block_size, CODEC)
    chunks.ChunkBlocks(store, Cache.SPARE).get(0, digest, store.buffers.block[:block_size])


def scrubbed(root: str) -> None:
    """What `backy scrub` does."""
    once = scrub.Scrub(Repository(Path(root)), timedelta(days=30))
    for _ in once.run(scrub.Limits(), origins=[]):
        pass
    once.coverage()


def report(root: str, report_id: str) -> None:
    """What `backy reports` reads."""
    repository = Repository(Path(root))
    list(quarantine_reports.reports(repository))
    quarantine_reports.find(repository, report_id)


def exchanging(place: str, twin: str, moment: int, when: str, *words: str) -> object:
    """A command, while `place` and `twin` change places at the n-th moment that `place` is used.

    `when` is "before" the folder of what is used is opened, "after" that, or "both": and back.
    NEW in `place` stands for an id that the command makes.
    """
    original = places._opened  # whatever is done below a root goes through it
    pattern = re.compile(re.escape(place).replace(re.escape(NEW), r"\d{8}T\d{6}Z-[0-9a-z]{4}"))

    def victim(used: Path) -> Path | None:
        for path in (used, *used.parents):
            if pattern.fullmatch(str(path)):
                return path
        return Path(place) if used == Path(place).parent and NEW not in place else None

    def opened(root: places.Root, parts: tuple[str, ...], flags: int, mode: int) -> int:
        path = victim(Path(root.path, *parts))
        MOMENTS[0] += path is not None
        is_now = path is not None and MOMENTS[0] == moment
        if path and is_now and when != "after":
            exchange(path, Path(twin))
        try:
            return original(root, parts, flags, mode)
        finally:
            if path and is_now and when != "before":
                exchange(path, Path(twin))

    places._opened = opened
    return run(list(words))


WORK: dict[str, Callable[..., object]] = {
    "exchanging": exchanging,
    "backy": lambda *arguments: run(list(arguments)),
    "chunk": chunk,
    "index": index,
    "report": report,
    "repository": lambda path: read_settings(Path(path)),
    "revision": lambda path, block_size: read_revision(Path(path), block_size),
    "scrub": scrubbed,
    "nothing": lambda: None,
    "bug": lambda: 1 // 0,
    "hang": signal.pause,
    "take": lambda size: len(b"x" * size),
    "open": lambda path: Path(path).read_bytes(),
    "write": lambda path: Path(path).write_bytes(b""),
}


class Witness:
    """An audit hook (PEP 578): which files were opened or changed, by their real names."""

    def __init__(self) -> None:
        self.touched: set[tuple[str, bool]] = set()

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _READS:
            flags = int(arguments[2] or 0) if event == "open" else 0
            follow = not flags & (os.O_NOFOLLOW | os.O_EXCL)
            self._note(arguments[0], is_writing=bool(flags & _WRITING), follow=follow)
        elif event in _CHANGES:
            follow = event in {"os.chmod", "os.chown", "os.truncate", "os.utime"}
            self._note(arguments[0], is_writing=True, follow=follow)
        elif event in _PAIRS:
            for path in arguments[event == "os.link" : 2]:  # what gets a name is not written
                self._note(path, is_writing=True, follow=False)

    def _note(self, path: object, *, is_writing: bool, follow: bool) -> None:
        """A path that is not absolute belongs to rmtree, which goes by descriptors."""
        if isinstance(path, str | bytes | os.PathLike):
            name = os.fsdecode(path)
            if name.startswith("/"):
                folder, last = os.path.split(name)
                real = os.path.realpath(name if follow else folder)
                self.touched.add((real if follow else f"{real}/{last}", is_writing))


def memory(field: str) -> int:
    """What /proc/self/status says, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def map_libraries() -> None:
    """Map what a fork maps only when it runs into it, which is no memory that is taken."""
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5].startswith("/"):
            start, end = (int(each, 16) for each in fields[0].split("-"))
            libc.madvise(start, end - start, _POPULATE_READ)


def in_fork(request: dict[str, Any], files: dict[str, int]) -> None:
    """Do the work and leave the answer in a file; never returns."""
    os.dup2(files["out"], 1)
    os.dup2(files["err"], 2)
    signal.alarm(_SECONDS)
    if request["is_measured"]:
        map_libraries()
    witness = Witness()
    answer: dict[str, Any] = {"code": None, "error": "", "message": "", "bug": ""}
    before = memory("VmRSS")
    if not sys.argv[1:]:  # under strace its own look-ups would be in the way
        sys.addaudithook(witness)
    try:
        answer["code"] = WORK[request["what"]](*request["arguments"])
    except BackyError as error:
        answer |= {"error": type(error).__name__, "message": error.message}
    except BaseException:  # noqa: BLE001 - whatever it is, the test is to hear of it
        answer["bug"] = traceback.format_exc()
    if not isinstance(answer["code"], int):
        answer["code"] = None
    answer["peak"] = memory("VmHWM") - before
    answer["touched"] = sorted(witness.touched)
    answer["moments"] = MOMENTS[0]
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(files["answer"], json.dumps(answer).encode())
    os._exit(0)


def serve() -> None:
    """Answer requests until there are no more."""
    for name in COMMANDS:  # importing them takes longer than most of them take
        program().load(name)
    gc.freeze()  # a collection in a fork would copy every page
    for line in sys.stdin:
        files = {name: os.memfd_create(name) for name in ("out", "err", "answer")}
        child = os.fork()
        if not child:
            in_fork(json.loads(line), files)
        _, status = os.waitpid(child, 0)
        read = {
            name: os.pread(number, os.fstat(number).st_size, 0) for name, number in files.items()
        }
        for number in files.values():
            os.close(number)
        ended: dict[str, Any] = {
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
            "out": read["out"].decode(errors="replace"),
            "err": read["err"].decode(errors="replace"),
        }
        print(json.dumps(json.loads(read["answer"] or b"{}") | ended), flush=True)  # noqa: T201


if __name__ == "__main__":
    serve()
