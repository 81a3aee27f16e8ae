"""However hostile a file is, reading it costs at most 50 MiB, and ends with a BackyError at worst.

Measured by the kernel, in a process of its own: allocators of C and Rust do not tell Python.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import blake3
import pytest

from tests.fuzz import frames
from tests.fuzz.sandbox import MIB, MOST, Child, Outcome, Sandbox
from tests.lab.paged import LINES, copies

ID = "20261123T004938Z-x7k2"
REPORT = "20261124T030000Z-abab"
RECORD = MIB  # bytes that are read of a JSON file
BLOCK = 65536


def filled(begin: str, item: str, end: str, size: int = RECORD) -> bytes:
    """A JSON text as long as may be, mostly of one item again and again; "@" in it is a number."""
    room = size - len(begin) - len(end)
    items: list[str] = []
    while room > 0:
        items.append(item.replace("@", f"{len(items):x}"))
        room -= len(items[-1].encode()) + 1
    return (begin + ",".join(items[:-1]) + end).encode()


SETTINGS = '{"format":1,"store":"chunks","block_size":65536,"source":{'
DEEP = "[" * 900 + "]" * 900
SHAPES = {
    "lists": ('{"format":1,"x":[', "[]", "]}"),
    "lists-in-lists": ('{"format":1,"x":[', DEEP, "]}"),
    "objects": ('{"format":1,"x":[', "{}", "]}"),
    "objects-in-objects": ('{"format":1,"x":[', '{"":' * 300 + "1" + "}" * 300, "]}"),
    "keys": ('{"format":1,', '"@":1', "}"),
    "wide-letters-and-lists": ('{"format":1,"\U0001f4be":[', DEEP, "]}"),
    "numbers": ('{"format":1,"x":[', "@99.5e1", "]}"),
    "strings": ('{"format":1,"x":[', '"@"', "]}"),
    "one-string": ('{"format":1,"x":["', "xxxxxxxx", '"]}'),
    "huge-numbers": ('{"format":1,"x":[', "9" * 4300, "]}"),
    "one-format": ('{"format":[', "[[]]", "]}"),
    "top-list": ("[", "{}", "]"),
    "never-closed": ("", "[" * 90, ""),
}
TYPED = {
    "repository": {
        "source-of-lists": (SETTINGS + '"x":[', DEEP, "]}}"),
        "source-of-keys": (SETTINGS, '"@":{}', "}}"),
    },
    "revision": {
        "tags-that-are-none": (f'{{"format":1,"id":"{ID}","tags":[', "1", "]}"),
        "disks-of-nothing": (f'{{"format":1,"id":"{ID}","disks":{{', '"@":{}', "}}"),
        "damaged-ranges": (f'{{"format":1,"id":"{ID}","damaged":{{"vda":[', "[0,1]", "]}}"),
        "damaged-that-is-none": (f'{{"format":1,"id":"{ID}","damaged":{{"vda":[', "{}", "]}}"),
        "damaged-disks": (f'{{"format":1,"id":"{ID}","damaged":{{', '"@":1', "}}"),
        "warnings": (f'{{"format":1,"id":"{ID}","warnings":[', "[]", "]}"),
    },
    "report": {
        "occurrences-of-nothing": (f'{{"format":1,"id":"{REPORT}","occurrences":[', "{}", "]}"),
        "revisions-that-are-none": (f'{{"format":1,"id":"{REPORT}","revisions":[', "1", "]}"),
    },
    "scrub": {
        "slices-that-are-none": ('{"format":1,"lengths":{},"disks":{"vda":[', "1", "]}}"),
        "empty-slices": ('{"format":1,"lengths":{},"disks":{"vda":[', "{}", "]}}"),
        "slices-of-lies": ('{"format":1,"disks":{"vda":[', '{"read":1,"upto":2,"bytes":""}', "]}}"),
        "lengths": ('{"format":1,"lengths":{', '"@":"x"', "}}"),
        "disks": ('{"format":1,"disks":{', '"@":[]', "}}"),
    },
}  # fmt: skip
CASES = [
    pytest.param(kind, *shape, id=f"{kind}-{name}")
    for kind, typed in TYPED.items()
    for name, shape in ({**SHAPES, **typed} if kind == "revision" else typed).items()
]


def bounded(outcome: Outcome) -> Outcome:
    """The work ended as it may, and took no more memory than it may."""
    assert outcome.signal == 0
    assert not outcome.bug, outcome.bug
    assert outcome.peak <= MOST, f"{outcome.peak / MIB:.1f} MiB"
    return outcome


def read(hostile: Sandbox, kind: str, make: Callable[[Path], object]) -> Outcome:
    """Have a file of this kind made, and read."""
    root = hostile.root
    paths: dict[str, tuple[Path, tuple[str | int, ...]]] = {
        "repository": (root / "repository.json", ()),
        "revision": (root / "revisions" / ID / "revision.json", (BLOCK,)),
        "report": (root / "quarantine" / REPORT / "report.json", (REPORT,)),
        "scrub": (root / "scrub.json", ()),
    }
    path, more = paths[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    first = path if kind in {"repository", "revision"} else root
    return hostile.child.do(kind, first, *more)


@pytest.mark.parametrize(("kind", "begin", "item", "end"), CASES)
def test_a_record_full_of_what_costs_most_is_read_in_little_memory(
    hostile: Sandbox, kind: str, begin: str, item: str, end: str
) -> None:
    # The smaller one in case that there is a limit to the parts.
    for size in (RECORD, RECORD // 8) if '"x":[' not in begin else (RECORD,):
        content = filled(begin, item, end, size)
        assert size * 0.9 < len(content) <= size
        bounded(read(hostile, kind, partial(Path.write_bytes, data=content)))


def gibibyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


@pytest.mark.parametrize("kind", TYPED)
def test_a_record_of_a_gibibyte_is_not_read(hostile: Sandbox, kind: str) -> None:
    outcome = bounded(read(hostile, kind, gibibyte))
    assert outcome.peak < 16 * MIB
    if kind != "scrub":  # which is forgotten, and everything is read again
        assert "larger than" in outcome.message


def forge(
    hostile: Sandbox, content: bytes, blocks: int, index_hash: str | None = None, version: int = 1
) -> Path:
    """Give the newest revision a disk of so many blocks, with this index."""
    folder = hostile.revisions()[-1]
    path = folder / "vda.blocks"
    path.write_bytes(content)
    os.truncate(path, 65 * (blocks if version == 1 else -(-blocks // LINES)))
    record = json.loads((folder / "revision.json").read_text())
    index_hash = index_hash or blake3.blake3(content).hexdigest()
    record["format"] = version
    record["disks"]["vda"] |= {"size": blocks * BLOCK, "index_hash": index_hash}
    (folder / "revision.json").write_text(json.dumps(record))
    return path


BLOCKS = 3 * 65536  # three times what is looked at in one go: a disk of 12 GiB
LENGTH = 65 * BLOCKS


def hashes() -> bytes:
    """Lines that are names, no two alike."""
    noise = random.Random(1).randbytes(32 * BLOCKS).hex()
    return (
        "\n".join(noise[start : start + 64] for start in range(0, len(noise), 64)).encode() + b"\n"
    )


INDEXES: dict[str, Callable[[], bytes]] = {
    "short-words": lambda: b"ab " * (LENGTH // 3),
    "newlines": lambda: b"\n" * LENGTH,
    "bytes": lambda: b"\xff" * LENGTH,
    "names-of-nothing": hashes,
    "one-name": lambda: (b"f" * 64 + b"\n") * BLOCKS,
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", INDEXES)
def test_a_forged_index_is_read_in_little_memory(
    child: Child, tmp_path: Path, name: str, version: int
) -> None:
    """In format 2 with as many pages as a disk of 3 TiB has in blocks of 64 KiB."""
    content = INDEXES[name]()
    assert len(content) == LENGTH
    path = tmp_path / "vda.blocks"
    path.write_bytes(content)
    index_hash = blake3.blake3(content).hexdigest()
    if version == 1:
        bounded(child.do("index", path, BLOCKS * BLOCK, BLOCK, index_hash))
    else:
        size = BLOCKS * LINES * BLOCK
        outcome = bounded(child.do("index", path, size, BLOCK, index_hash, tmp_path))
        assert outcome.error == "DamagedError"


def test_pages_of_a_gibibyte_are_read_in_little_memory(child: Child, tmp_path: Path) -> None:
    name = "f" * 64
    for path in copies(tmp_path, name):
        path.parent.mkdir(parents=True)
        gibibyte(path)
    index = f"{name}\n".encode()
    (tmp_path / "vda.blocks").write_bytes(index)
    index_hash = blake3.blake3(index).hexdigest()
    size = LINES * BLOCK
    outcome = bounded(child.do("index", tmp_path / "vda.blocks", size, BLOCK, index_hash, tmp_path))
    assert outcome.error == "DamagedError"
    assert outcome.peak < 16 * MIB + (32 * MIB)  # 32 MiB are what a purge takes for any index


@pytest.mark.parametrize("version", [1, 2])
def test_a_sparse_index_of_a_tebibyte_is_refused_at_once(
    child: Child, tmp_path: Path, version: int
) -> None:
    path = tmp_path / "vda.blocks"
    path.touch()
    lines = (1 << 40) // 65
    os.truncate(path, 65 * lines)
    blocks = lines if version == 1 else LINES * lines
    pages = [tmp_path] if version == 2 else []
    outcome = bounded(child.do("index", path, blocks * BLOCK, BLOCK, "0" * 64, *pages))
    assert outcome.error == "DamagedError"


COMMANDS = {
    "list": ("list", "vm1"),
    "verify": ("verify", "vm1"),
    "scrub": ("scrub", "vm1"),
    "restore": ("restore", "vm1", "@target"),
    "keep-going": ("restore", "vm1", "@target", "--keep-going"),
    "diff": ("diff", "vm1", "1", "0"),
    "backup": ("backup", "vm1"),
    "purge": ("purge", "vm1"),
}


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        *(("short-words", command) for command in COMMANDS),
        *(("sparse", command) for command in ("verify", "scrub", "restore")),
    ],
)
def test_a_command_meets_a_forged_index_in_little_memory(
    hostile: Sandbox, command: str, name: str, version: int
) -> None:
    blocks = (1 << 34) if name == "sparse" else BLOCKS * (LINES if version == 2 else 1)
    if name == "sparse":
        forge(hostile, b"", blocks, "0" * 64, version)
    else:
        forge(hostile, INDEXES[name](), blocks, None, version)
    arguments = [each.replace("@target", f"{hostile.folder}/target") for each in COMMANDS[command]]
    hostile.backy(*arguments, is_measured=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_meets_an_index_of_pages_that_nobody_has_in_little_memory(
    hostile: Sandbox, command: str
) -> None:
    """60 names of pages, as a disk of nearly 1 GiB has in blocks of 64 KiB."""
    forge(hostile, hashes()[: 65 * 60], 60 * LINES, None, version=2)
    arguments = [each.replace("@target", f"{hostile.folder}/target") for each in COMMANDS[command]]
    hostile.backy(*arguments, is_measured=True)


@pytest.mark.parametrize("block_size", [MIB, 16 * MIB], ids=["1MiB", "16MiB"])
@pytest.mark.parametrize(
    "name",
    ["declares-4-gib", "bomb", "bomb-that-declares-a-block", "window-of-128-mib", "window-of-2-gib",
     "more-than-declared", "endless", "sparse"],
)  # fmt: skip
def test_a_chunk_that_wants_to_be_large_is_read_in_little_memory(
    child: Child, tmp_path: Path, name: str, block_size: int
) -> None:
    digest = "0" * 64
    path = tmp_path / "chunks" / "00" / f"{digest}.zst"
    path.parent.mkdir(parents=True)
    if name == "sparse":
        gibibyte(path)
    else:
        path.write_bytes(frames.hostile(b"backy!!!" * (block_size // 8))[name])
    bounded(child.do("chunk", tmp_path, digest, block_size))


# The measuring itself.


def test_memory_that_is_taken_is_measured(child: Child) -> None:
    outcome = child.do("take", 64 * MIB)
    assert 60 * MIB < outcome.peak < 72 * MIB


def test_work_that_takes_nothing_is_measured_as_little(child: Child) -> None:
    assert child.do("nothing").peak < 4 * MIB


def test_a_bug_is_told_from_an_error(child: Child) -> None:
    assert "ZeroDivisionError" in child.do("bug").bug
    outcome = child.do("repository", "/nowhere/repository.json")
    assert (outcome.error, outcome.bug) == ("ConfigError", "")


def test_what_is_opened_and_written_is_witnessed(hostile: Sandbox) -> None:
    (hostile.root / "link").symlink_to(hostile.neighbour)
    real = str(hostile.neighbour / "restore.sh")
    assert (real, False) in hostile.child.do("open", hostile.root / "link" / "restore.sh").touched
    assert (real, True) in hostile.child.do("write", hostile.root / "link" / "restore.sh").touched
