"""What the programs in this folder have in common: they speak the protocol of docs/sources/exec.md.

Copy it together with the program that you use. It needs Python 3.9 and nothing else.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

ID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[a-z0-9]{4}")


class Refusal(Exception):  # noqa: N818 - it is none of the program's mistakes
    """Why something cannot be done; backy shows it."""


def main(
    snapshot: Callable[[dict[str, Any]], dict[str, Any]],
    extents: Callable[[dict[str, Any]], tuple[Iterable[tuple[int, int, str]], int]],
    release: Callable[[dict[str, Any]], None],
) -> None:
    """Do what the last argument says, with the request on standard input.

    `snapshot` gives the answer. `extents` gives (start, length, kind) of what changed, in any
    order and with gaps, which are "same", and the size of the disk. `release` removes snapshots.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that `finally` is run
    verb, request = sys.argv[-1], json.load(sys.stdin)
    try:
        if verb == "snapshot":
            json.dump(snapshot(request), sys.stdout)
        elif verb == "extents":
            changed, size = extents(request)
            lines = [f"{start} {length} {kind}\n" for start, length, kind in cover(changed, size)]
            sys.stdout.write(f"parent {request['parent']}\n" + "".join(lines))
        elif verb == "release":
            release(request)
        else:
            sys.exit(f"there is no verb {verb!r}")
    except (Refusal, OSError) as error:
        sys.exit(str(error))
    except KeyError as error:
        sys.exit(f"{error} is missing")


def run(*command: str) -> str:
    """What a command prints. What it says on standard error goes to backy."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise Refusal(f"{' '.join(command)} ended with code {ended.returncode}")
    return ended.stdout


def piped(first: tuple[str, ...], second: tuple[str, ...]) -> Iterator[str]:
    """The lines that the second command prints of what the first one does.

    The second one has to fail where it does not hear the end.
    """
    writer = subprocess.Popen(first, stdout=subprocess.PIPE)
    reader = subprocess.Popen(second, stdin=writer.stdout, stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    assert reader.stdout
    writer.stdout.close()
    with reader.stdout:
        yield from reader.stdout
    for child, command in ((reader, second), (writer, first)):
        # Who has heard the end of a stream may be gone before the other has said its last word.
        if child.wait() and not (child is writer and child.returncode == -signal.SIGPIPE):
            raise Refusal(f"{' '.join(command)} ended with code {child.returncode}")


def cover(changed: Iterable[tuple[int, int, str]], size: int) -> Iterator[tuple[int, int, str]]:
    """Put `changed` in order, fill its gaps with "same", and cut what goes beyond `size`."""
    position = 0
    for start, end, kind in _disjoint(changed):
        if position < min(start, size):
            yield position, min(start, size) - position, "same"
        if start < min(end, size):
            yield start, min(end, size) - start, kind
        position = max(position, end)
    if position < size:
        yield position, size - position, "same"


def _disjoint(changed: Iterable[tuple[int, int, str]]) -> Iterator[tuple[int, int, str]]:
    """Extents as (start, end, kind), ascending; where two kinds overlap, all is data: read it."""
    last: tuple[int, int, str] | None = None
    for start, length, kind in sorted(changed):
        end = start + length
        if last and start < last[1] + (kind == last[2]):
            last = last[0], max(last[1], end), kind if kind == last[2] else "data"
            continue
        if last:
            yield last
        last = start, end, kind
    if last:
        yield last


def outdated(names: Iterable[str], prefix: str, request: dict[str, Any]) -> list[str]:
    """Those of `names` that `release` has to remove: `prefix` and the id of a revision."""
    found = [(name, name[len(prefix) :]) for name in names if name.startswith(prefix)]
    return [name for name, revision in found if is_outdated(revision, request)]


def is_outdated(revision: str, request: dict[str, Any]) -> bool:
    """Whether `release` asks to remove what belongs to `revision`, if that is an id at all."""
    if not ID.fullmatch(revision):
        return False
    if request["revision"] is None:
        return revision not in request["keep"]
    return bool(revision == request["revision"] and not request["is_kept"])
