"""backy serve: offer disks of revisions over NBD."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import AsJson, Context, app
from backy.cli.output import answer
from backy.cli.progress import Warnings
from backy.errors import UsageError
from backy.model.answers import ServeAnswer

if TYPE_CHECKING:
    from socket import socket as Socket  # noqa: N812 - an argument is called socket

_WORDS = "A job, with all its revisions; or JOB@REV, for that one alone."
Words = Annotated[list[str], Argument(parser=values.job_word, metavar="JOB", help=_WORDS)]
_SOCKET = "Listen at this Unix socket, which only its owner may use."
SocketPath = Annotated[Path | None, Option(parser=values.path, metavar="PATH", help=_SOCKET)]
_GROUP = "A group that may use the socket, too."
Group = Annotated[int | None, Option(parser=values.group, metavar="GROUP", help=_GROUP)]
_LISTEN = "Listen at an address of this machine; without TLS at a loopback address only."
Listen = Annotated[
    values.Listen | None, Option(parser=values.listen, metavar="ADDRESS:PORT", help=_LISTEN)
]
_TLS = "A folder with ca-cert.pem, server-cert.pem and server-key.pem; clients need one, too."
Tls = Annotated[Path | None, Option(parser=values.path, metavar="FOLDER", help=_TLS)]


@app.command(epilog="Example: backy serve vm1 vm2@2026-11-23 --socket /run/backy/nbd.sock")
def serve(
    context: Context,
    jobs: Words,
    socket: SocketPath = None,
    socket_group: Group = None,
    listen: Listen = None,
    tls_certificates: Tls = None,
    as_json: AsJson = False,
) -> None:
    """Offer disks of revisions over NBD, for reading.

    The exports are called JOB/REV/DISK; REV may be latest. It stays in the foreground, until
    SIGTERM or Ctrl-C. The hash of every block is checked. A damaged block is healed if that is
    possible; if not, the client gets an error, and the block is named here.
    """
    from backy.daemon.systemd import notify
    from backy.operations.serve import serve_jobs

    def listening(uris: Sequence[str]) -> None:
        answer(as_json, ServeAnswer(uris=uris), uris)
        notify("READY=1")

    is_encrypted = tls_certificates is not None
    with _listener(socket, socket_group, listen, is_encrypted=is_encrypted) as listener:
        serve_jobs(
            context.obj, jobs, listener, tls_certificates, on_ready=listening, watcher=Warnings()
        )


def _listener(
    path: Path | None, group: int | None, listen: values.Listen | None, *, is_encrypted: bool
) -> AbstractContextManager[Socket]:
    from backy.system.sockets import tcp_listener, unix_listener

    if path and not listen:
        return unix_listener(path, group)
    if path or not listen or group is not None:
        hint = "For this machine use --socket PATH, for others --listen ADDRESS:PORT."
        raise UsageError("serve needs either --socket or --listen", hint)
    if not is_encrypted and not ip_address(listen.host).is_loopback:
        hint = "Add --tls-certificates FOLDER, or listen at 127.0.0.1."
        raise UsageError(f"without TLS anybody could read the disks at {listen.host}", hint)
    return tcp_listener(*listen)
