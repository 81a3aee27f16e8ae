"""The daemon's Unix socket: one JSON request a connection, one JSON reply.

{"do": "status"} and the like; the reply has what was asked for, or {"error": …, "hint": …}. Who
may open the socket may do all that the daemon can, so it is its owner's only.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from backy.errors import BackyError, ConfigError, StoreError
from backy.system import folders
from backy.units import KiB, MiB

_LONGEST_REQUEST = 64 * KiB
_LONGEST_REPLY = 256 * MiB  # 10,000 jobs take 5 MiB
_PATIENCE = 10  # seconds
Reply = dict[str, Any]


def ask(path: Path, **request: object) -> Reply | None:
    """What the daemon at `path` answers; None where there is no daemon.

    Raises StoreError where there is one that does not answer, or that cannot do it.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_PATIENCE)
        try:
            channel.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return None
        except OSError as error:
            raise StoreError(f"asking the daemon at {path}: {error}", "Are you root?") from error
        try:
            channel.sendall(json.dumps(request).encode() + b"\n")
            with channel.makefile("rb") as stream:
                reply: Reply = json.loads(stream.readline(_LONGEST_REPLY))
        except (OSError, ValueError) as error:
            hint = "Look into its log: journalctl -u backy."
            raise StoreError(f"the daemon at {path} does not answer: {error}", hint) from error
    if "error" in reply:
        raise StoreError(str(reply["error"]), str(reply.get("hint", "")))
    return reply


async def listen(path: Path, answer: Callable[[Reply], Awaitable[Reply]]) -> asyncio.Server:
    """Answer requests at `path` until the server is closed.

    Raises ConfigError where no socket can be there.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, ValueError):  # it hung up, or never ends its line
            try:
                line = await asyncio.wait_for(reader.readline(), _PATIENCE)
                writer.write(json.dumps(await _reply(line, answer)).encode() + b"\n")
                await asyncio.wait_for(writer.drain(), _PATIENCE)
            finally:
                writer.close()

    try:
        folders.make_folder(path.parent)
        folders.remove_socket(path)
        server = await asyncio.start_unix_server(serve, path, limit=_LONGEST_REQUEST)
        folders.allow(path, 0o600)
    except OSError as error:
        hint = "Set global.socket to a path of at most 107 bytes that you may write to."
        raise ConfigError(f"listening at {path}: {error}", hint) from error
    return server


async def close(server: asyncio.Server, path: Path) -> None:
    """Answer no more, and leave no socket."""
    server.close()
    with suppress(OSError):
        folders.remove_socket(path)


async def _reply(line: bytes, answer: Callable[[Reply], Awaitable[Reply]]) -> Reply:
    try:
        request = dict(json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        return {"error": f"the request is no JSON object: {error}"}
    try:
        return await answer(request)
    except BackyError as error:
        return {"error": error.message, "hint": error.hint}
