"""The first phase of NBD: client and server agree on the export and on what both can do."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from backy.nbd import wire as nbd
from backy.nbd.uri import Address
from backy.nbd.wire import RefusedError, ViolationError, Wire
from backy.units import KiB, MiB

_LONGEST_REPLY = 16 * KiB  # bytes; a name and a description have at most 4 KiB each
_LARGEST_SIZE = 2**63 - 1
_LARGEST_MINIMUM = 64 * KiB  # the protocol's limit of the minimum block size
# Every server takes 32 MiB that does not say otherwise. But what server and client copy stays in
# the processor's caches with less: 4 connections to qemu-nbd gave 750 MiB/s with 4 MiB at once,
# 1,340 MiB/s with 1 MiB and 940 MiB/s with 256 KiB.
_LARGEST_REQUEST = MiB
_REFUSALS = {1: "not supported", 2: "forbidden", 5: "TLS is required", 6: "no such export"}


@dataclass(slots=True)
class Export:
    """What the server said of the export. Sizes are bytes.

    Reads start and end at multiples of `minimum` and have at most `maximum` bytes. `contexts` are
    the kinds of block status that it gives, by the number that stands for each.
    """

    size: int = -1
    flags: int = 0
    minimum: int = 1
    maximum: int = _LARGEST_REQUEST
    contexts: dict[int, str] = field(default_factory=dict)


def shake_hands(wire: Wire, address: Address, contexts: Collection[str]) -> Export:
    """Bring a new connection to where requests can be sent.

    `contexts` are asked for; Export.contexts has those that there are. Raises OSError where the
    server refuses or does not follow the protocol.
    """
    magic, style, flags = wire.unpack(">8s8sH")
    if magic != nbd.NBD_MAGIC:
        raise ViolationError("what answers is no NBD server")
    if style != nbd.OPTION_MAGIC or not flags & nbd.FIXED_NEWSTYLE:
        raise ViolationError("the server speaks an old kind of NBD only")
    wire.send(">I", nbd.FIXED_NEWSTYLE | flags & nbd.NO_ZEROES)
    if address.tls_name:
        _accept(wire, nbd.STARTTLS)
        wire.start_tls(address)
    export, name = Export(), _string(address.export)
    with suppress(RefusedError):  # then nothing is known of holes, and all of it is read
        _accept(wire, nbd.STRUCTURED_REPLY)
        asked = name + struct.pack(">I", len(contexts)) + b"".join(map(_string, contexts))
        for kind, data in _ask(wire, nbd.SET_META_CONTEXT, asked):
            _take_context(export, kind, data, contexts)
    for kind, data in _ask(wire, nbd.GO, name + struct.pack(">HH", 1, nbd.INFO_BLOCK_SIZE)):
        _take_info(export, kind, data)
    if not 0 < export.size <= _LARGEST_SIZE:
        raise ViolationError(f"the export has an impossible size of {export.size} bytes")
    return export


def _string(text: str) -> bytes:
    return struct.pack(">I", len(text.encode())) + text.encode()


def _accept(wire: Wire, option: int) -> None:
    for kind, _ in _ask(wire, option, b""):
        raise ViolationError(f"option {option} was answered with type {kind}")


def _ask(wire: Wire, option: int, data: bytes) -> Iterator[tuple[int, bytearray]]:
    """Send an option and give the type and the data of each reply before the last, which agrees."""
    wire.send(">8sII", nbd.OPTION_MAGIC, option, len(data), data=data)
    while True:
        magic, answered, kind, length = wire.unpack(">QIII")
        if (magic, answered) != (nbd.OPTION_REPLY_MAGIC, option) or length > _LONGEST_REPLY:
            raise ViolationError(f"option {option} was answered with something else")
        reply = wire.receive(length)
        if kind == nbd.ACK:
            return
        if kind & nbd.IS_REFUSED:
            why = _REFUSALS.get(kind - nbd.IS_REFUSED, f"no to option {option}: {kind:#x}")
            raise RefusedError(0, reply.decode(errors="replace") or why)
        yield kind, reply


def _take_context(export: Export, kind: int, data: bytearray, contexts: Collection[str]) -> None:
    number, name = int.from_bytes(data[:4], "big"), data[4:].decode(errors="replace")
    known = export.contexts
    is_new = name in contexts and name not in known.values() and number not in known
    if kind != nbd.META_CONTEXT or not is_new:
        raise ViolationError(f"a context {number}, {name[:100]!a}, was never asked for")
    known[number] = name


def _take_info(export: Export, kind: int, data: bytearray) -> None:
    about = int.from_bytes(data[:2], "big")
    try:
        if kind != nbd.INFO:
            raise ViolationError(f"the export was described with type {kind}")
        if about == nbd.INFO_EXPORT:
            export.size, export.flags = struct.unpack(">QH", data[2:])
        elif about == nbd.INFO_BLOCK_SIZE:
            minimum, _, maximum = struct.unpack(">III", data[2:])
            if not 0 < minimum <= min(_LARGEST_MINIMUM, maximum) or minimum & (minimum - 1):
                raise ViolationError(f"the block sizes {minimum} and {maximum} are not allowed")
            limit = min(maximum, _LARGEST_REQUEST)
            export.minimum, export.maximum = minimum, limit - limit % minimum
    except struct.error:
        raise ViolationError(f"information {about} has a wrong length") from None
