"""Read what QEMU can open, through a qemu-nbd child that only we can talk to."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from backy.errors import SourceError, translated
from backy.nbd.remote_image import NbdImage, open_image
from backy.nbd.uri import parse_uri
from backy.system import folders, process, signals

HINT = "Is it there, complete and in that format, and may you read it? Nothing was published."
_LOCK_HINT = "Shut the VM down, or back it up as it runs, with type: qemu or type: libvirt."
# A hostile image can make QEMU take as much memory as there is. One that reads for 16 connections
# has 0.6 GiB, nearly all of it stacks of threads that it never touches.
_COMMAND = (
    *("prlimit", "--data=2147483648", "--core=0"),
    *("qemu-nbd", "--read-only", "--persistent", "--shared=16"),
)
_LONGEST = 500  # characters of what qemu-nbd says


@contextmanager
def serve(
    arguments: Sequence[str], what: str, *, bitmap: str | None = None, timeout_seconds: float = 60
) -> Iterator[NbdImage]:
    """Have a qemu-nbd export what `arguments` say, and give that as an Image.

    They end with a file, or with what --image-opts takes; errors name `what`. With `bitmap` the
    export has the persistent bitmap of that name, which must be there. Opening it takes
    `timeout_seconds` at most. The child ends with the body, and dies with us if we are killed.

    It reads past the page cache: 2 GiB took 2.9 s instead of 5.6 s, and left nothing there. Only
    where the file system has no O_DIRECT it reads through it.

    Raises SourceError where qemu-nbd cannot open it, with what that said, or takes too long.
    """
    deadline = time.monotonic() + timeout_seconds
    for cache in ("none", "writeback"):
        with ExitStack() as stack:
            folder = Path(os.environ.get("TMPDIR", "/tmp"), f"backy-{secrets.token_hex(8)}")  # noqa: S108 - nobody guesses it
            socket, ready = folder / "socket", folder / "ready"
            options = [f"--socket={socket}", f"--pid-file={ready}", f"--cache={cache}"]
            options += [f"--bitmap={bitmap}"] if bitmap else []
            with translated(SourceError, f"{what}: starting qemu-nbd"):
                folders.make_folder(folder)
                stack.callback(folders.remove_tree, folder)
                child = stack.enter_context(process.serving([*_COMMAND, *options, *arguments]))
            while not (is_ready := ready.exists()) and not child.has_ended():
                signals.sleep(0.01)
                if time.monotonic() > deadline:
                    break
            if is_ready:
                address = parse_uri(f"nbd+unix:///?socket={quote(str(socket))}")
                named = replace(address, text=what)
                opened = open_image(named, bitmap=bitmap, timeout_seconds=timeout_seconds)
                yield stack.enter_context(opened)
                return
        said = child.said() or f"it took longer than {timeout_seconds} s"
        if cache == "writeback" or "O_DIRECT" not in said:
            # It begins with what it was told to open, which may be a page of JSON.
            why = " ".join(said.rpartition("': ")[2].split())[:_LONGEST]
            raise SourceError(f"{what}: qemu-nbd: {why}", _LOCK_HINT if " lock " in why else HINT)
