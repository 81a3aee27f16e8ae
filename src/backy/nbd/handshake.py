"""The first phase of NBD: client and server agree on an export and on features."""

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
# A server that states no limit accepts 32 MiB. But the copies that server and client make fit into
# the processor's caches with less: 4 connections to qemu-nbd gave 750 MiB/s with requests of 4 MiB,
# 1,340 MiB/s with 1 MiB and 940 MiB/s with 256 KiB.
_LARGEST_REQUEST = MiB
_REFUSALS = {1: "not supported", 2: "forbidden", 5: "TLS is required", 6: "no such export"}


@dataclass(slots=True)
class Export:
    """An export as the server describes it. Sizes are bytes.

    Requests start and end at multiples of `minimum` and have at most `maximum` bytes. `contexts`
    has the names of the contexts whose block status the server gives, by their numbers.
    """

    size: int = -1
    flags: int = 0
    minimum: int = 1
    maximum: int = _LARGEST_REQUEST
    contexts: dict[int, str] = field(default_factory=dict)


def shake_hands(wire: Wire, address: Address, contexts: Collection[str]) -> Export:
    """Prepare a new connection for requests.

    Asks for `contexts`; Export.contexts has those that the server offers. Raises OSError where the
    server refuses or does not follow the protocol.
    """
    magic, style, flags = wire.unpack(">8s8sH")
    if magic != nbd.NBD_MAGIC:
        raise ViolationError("this is no NBD server")
    if style != nbd.OPTION_MAGIC or not flags & nbd.FIXED_NEWSTYLE:
        raise ViolationError("the server only supports an old version of NBD")
    wire.send(">I", nbd.FIXED_NEWSTYLE | flags & nbd.NO_ZEROES)
    if address.tls_name:
        _accept(wire, nbd.STARTTLS)
        wire.start_tls(address)
    export, name = Export(), _string(address.export)
    with suppress(RefusedError):  # then holes are unknown, and everything is read
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
    """Send an option; give the type and the data of each reply before the final acknowledgement."""
    wire.send(">8sII", nbd.OPTION_MAGIC, option, len(data), data=data)
    while True:
        magic, answered, kind, length = wire.unpack(">QIII")
        if (magic, answered) != (nbd.OPTION_REPLY_MAGIC, option) or length > _LONGEST_REPLY:
            raise ViolationError(f"the reply to option {option} makes no sense")
        reply = wire.receive(length)
        if kind == nbd.ACK:
            return
        if kind & nbd.IS_REFUSED:
            why = _REFUSALS.get(kind - nbd.IS_REFUSED, f"no to option {option}: {kind:#x}")
            raise RefusedError(0, reply.decode(errors="replace") or why)
        yield kind, reply


def _take_context(export: Export, kind: int, data: bytearray, contexts: Collection[str]) -> None:
    number, name = int.from_bytes(data[:4], "big"), data[4:].decode(errors="replace")
    offered = export.contexts
    is_new = name in contexts and name not in offered.values() and number not in offered
    if kind != nbd.META_CONTEXT or not is_new:
        raise ViolationError(f"the server offers context {number}, {name[:100]!a}, unasked")
    offered[number] = name


def _take_info(export: Export, kind: int, data: bytearray) -> None:
    topic = int.from_bytes(data[:2], "big")
    try:
        if kind != nbd.INFO:
            raise ViolationError(f"the export is described by a reply of type {kind}")
        if topic == nbd.INFO_EXPORT:
            export.size, export.flags = struct.unpack(">QH", data[2:])
        elif topic == nbd.INFO_BLOCK_SIZE:
            minimum, _, maximum = struct.unpack(">III", data[2:])
            if not 0 < minimum <= min(_LARGEST_MINIMUM, maximum) or minimum & (minimum - 1):
                raise ViolationError(f"the block sizes {minimum} and {maximum} are invalid")
            limit = min(maximum, _LARGEST_REQUEST)
            export.minimum, export.maximum = minimum, limit - limit % minimum
    except struct.error:
        raise ViolationError(f"information {topic} has a wrong length") from None
