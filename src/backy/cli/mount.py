"""backy mount: look into all revisions, as into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import Context, app
from backy.cli.output import print_lines
from backy.cli.progress import Warnings

_FOLDER = "An empty folder."
Folder = Annotated[Path, Argument(parser=values.path, metavar="DIR", help=_FOLDER)]
_PATTERN = "Only jobs with such a name: web* or db-[0-9]; may be repeated."
Patterns = Annotated[list[str] | None, Option("--job", metavar="PATTERN", help=_PATTERN)]
_OTHER = "Let all users read it, not only you."
AllowOther = Annotated[bool, Option("--allow-other", help=_OTHER)]


@app.command(epilog="Example: backy mount /mnt/backups --job 'web*'")
def mount(
    context: Context, folder: Folder, patterns: Patterns = None, allow_other: AllowOther = False
) -> None:
    """Show all revisions as files in a folder, until SIGTERM or fusermount3 -u.

    Each disk of a revision is DIR/JOB/REVISION/DISK.img, a raw image; DIR/JOB/latest leads to the
    newest revision. New revisions appear, and removed ones go. Nothing can be written. The hash of
    every block is checked, and a damaged block is healed if possible.
    """
    from backy.daemon.systemd import notify
    from backy.operations.mount import mount as run

    def ready() -> None:
        print_lines([f"mounted {context.obj.base} at {folder}; to end it: fusermount3 -u {folder}"])
        notify("READY=1")

    shown = patterns or ["*"]
    run(context.obj, folder, shown, allow_other=allow_other, watcher=Warnings(), ready=ready)
