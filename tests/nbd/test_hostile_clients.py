"""A client that sends anything costs neither the server nor other clients anything.

Each round changes what a good client sends. HYPOTHESIS_PROFILE=soak sends 1,000,000 frames. A
failure is repeated with its BACKY_SEED.
"""

import contextlib
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.nbd.servers import content_of
from tests.nbd.serving import BLOCK, CHANGED, OPTION, REQUEST, Client, Serving, packed, serving

FRAMES = 1_000_000 if os.environ.get("HYPOTHESIS_PROFILE") == "soak" else 4_000
SEED = int(os.environ.get("BACKY_SEED", "1"))
IN_A_ROUND = 50
CONTENT = random.Random(1).randbytes(3 * BLOCK + 77) + bytes(2 * BLOCK)
NAMES = [b"disk", b"latest", b"", b"nosuch", b"\xff\xfe", b"x" * 5000, b"disk\0"]
NUMBERS = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(CONTENT), len(CONTENT) - 1, BLOCK, 4096]
CONTEXTS = [b"base:allocation", CHANGED.encode(), b"base:", b"", b"nosuch:x", b"\xff" * 3]


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving({"disk": CONTENT}, cache_blocks=4) as made:
        yield made


def option(chance: random.Random) -> bytes:
    """An option, most of them nearly right."""
    number = chance.choice([1, 2, 3, 5, 6, 7, 7, 7, 8, 8, 9, 10, 10, 11, 99])
    name = chance.choice(NAMES)
    data = struct.pack(">I", chance.choice([len(name), len(name), *NUMBERS])) + name
    if number in {6, 7}:
        data += struct.pack(">H", chance.choice([0, 0, 1, 3, 65535])) + bytes(chance.choice([0, 2]))
    if number in {9, 10}:
        asked = [chance.choice(CONTEXTS) for _ in range(chance.choice([0, 1, 2, 20]))]
        data += struct.pack(">I", chance.choice([len(asked), len(asked), *NUMBERS]))
        data += b"".join(struct.pack(">I", len(each)) + each for each in asked)
    if number in {1, 3, 5, 8} and chance.random() < 0.9:
        data = name if number == 1 else b""
    length = len(data) if chance.random() < 0.95 else chance.choice(NUMBERS)
    return OPTION + struct.pack(">II", number, length) + data


def request(chance: random.Random) -> bytes:
    """A request, most of them nearly right."""
    command = chance.choice([0, 0, 0, 0, 1, 3, 4, 5, 6, 7, 7, 99, 65535])
    length = chance.choice([1, 512, 4096, BLOCK, *NUMBERS])
    offset = chance.choice([0, 1, BLOCK, len(CONTENT) - 1, 2**63, 2**64 - 1, *NUMBERS])
    flags = chance.choice([0, 0, 4, 8, 0xFFFF])
    magic = REQUEST if chance.random() < 0.99 else chance.getrandbits(32)
    payload = bytes(min(length, 1 << 16)) if command == 1 else b""
    return struct.pack(">IHHQQI", magic, flags, command, 1, offset, length) + payload


def mutated(chance: random.Random, frame: bytes) -> bytes:
    """The frame, or sometimes another one."""
    if frame and chance.random() < 0.1:
        changed = bytearray(frame)
        for _ in range(chance.randint(1, 4)):
            changed[chance.randrange(len(changed))] = chance.getrandbits(8)
        return bytes(changed[: chance.randint(1, len(changed))])
    return frame


def play(server: Serving, chance: random.Random) -> None:
    """One client: some options, perhaps a good choice of the export, and requests."""
    with Client(server.path, chance.choice([3, 3, 3, 1])) as client:
        frames = [mutated(chance, option(chance)) for _ in range(chance.choice([0, 0, 5]))]
        is_good = chance.random() < 0.7
        if is_good and not frames:
            client.go("disk", "base:allocation", CHANGED, is_structured=chance.random() < 0.8)
        make: Callable[[random.Random], bytes] = request if is_good else option
        frames += [mutated(chance, make(chance)) for _ in range(IN_A_ROUND)]
        with contextlib.suppress(OSError, EOFError):
            for frame in frames:
                client.send(frame)
                client.drain()


def test_the_server_survives_what_hostile_clients_send(server: Serving) -> None:
    chance = random.Random(SEED)
    for _ in range(FRAMES // IN_A_ROUND):
        play(server, chance)
    assert content_of(server.uri()) == CONTENT
    assert server.exports.cache._size <= 4 * BLOCK


@given(sent=st.binary(max_size=300), is_chosen=st.booleans())
def test_any_bytes_are_survived(server: Serving, sent: bytes, is_chosen: bool) -> None:
    with Client(server.path) as client, contextlib.suppress(OSError, EOFError):
        if is_chosen:
            client.go("disk", "base:allocation")
        client.send(sent)
        client.drain()
    with Client(server.path) as client:
        assert client.option(6, packed("disk") + b"\0\0")[-1][0] == 1


def test_the_memory_of_the_process_stays_as_it_is(server: Serving) -> None:
    chance = random.Random(SEED)
    for _ in range(5):
        play(server, chance)
    before = resident()
    for _ in range(60):
        play(server, chance)
    assert resident() - before < 16 * 1024**2


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
