"""backy serve and mount: show the disks of revisions to other programs, for reading."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from ipaddress import ip_address
from pathlib import Path
from socket import socket as Socket  # noqa: N812 - an argument is called socket
from typing import Annotated

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import AsJson, Context, app
from backy.cli.output import answer, print_lines
from backy.cli.progress import Warnings
from backy.daemon.systemd import notify
from backy.errors import UsageError
from backy.model.answers import ServeAnswer
from backy.system.sockets import tcp_listener, unix_listener

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
_FOLDER = "An empty folder."
Folder = Annotated[Path, Argument(parser=values.path, metavar="DIR", help=_FOLDER)]
_PATTERN = "Only jobs with such a name: web* or db-[0-9]; may be repeated."
Patterns = Annotated[list[str] | None, Option("--job", metavar="PATTERN", help=_PATTERN)]
_OTHER = "Let all users read it, not only you."
AllowOther = Annotated[bool, Option("--allow-other", help=_OTHER)]


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
    from backy.operations.serve import serve_jobs

    def listening(uris: Sequence[str]) -> None:
        answer(as_json, ServeAnswer(uris=uris), uris)
        notify("READY=1")

    tls, watcher = tls_certificates, Warnings()
    with _listener(socket, socket_group, listen, tls) as listener:
        serve_jobs(context.obj, jobs, listener, tls, on_ready=listening, watcher=watcher)


def _listener(
    path: Path | None, group: int | None, listen: values.Listen | None, tls: Path | None
) -> AbstractContextManager[Socket]:
    if path and not listen:
        return unix_listener(path, group)
    if path or not listen or group is not None:
        hint = "For this machine use --socket PATH, for others --listen ADDRESS:PORT."
        raise UsageError("serve needs either --socket or --listen", hint)
    if not tls and not ip_address(listen.host).is_loopback:
        hint = "Add --tls-certificates FOLDER, or listen at 127.0.0.1."
        raise UsageError(f"without TLS anybody could read the disks at {listen.host}", hint)
    return tcp_listener(*listen)


@app.command(epilog="Example: backy mount /mnt/backups --job 'web*'")
def mount(
    context: Context, folder: Folder, patterns: Patterns = None, allow_other: AllowOther = False
) -> None:
    """Show all revisions as files in a folder, until SIGTERM or fusermount3 -u.

    Each disk of a revision is DIR/JOB/REVISION/DISK.img, a raw image; DIR/JOB/latest leads to the
    newest revision. New revisions appear, and removed ones go. Nothing can be written. The hash of
    every block is checked, and a damaged block is healed if possible.
    """
    from backy.operations.mount import mount as run

    def ready() -> None:
        print_lines([f"mounted {context.obj.base} at {folder}; to end it: fusermount3 -u {folder}"])
        notify("READY=1")

    shown = patterns or ["*"]
    run(context.obj, folder, shown, allow_other=allow_other, watcher=Warnings(), ready=ready)
