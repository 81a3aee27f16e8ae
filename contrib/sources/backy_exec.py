"""What the programs in this folder share: the protocol of docs/sources/exec.md.

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


class Refusal(Exception):  # noqa: N818 - it is no bug of the program
    """The reason why something cannot be done. backy shows it."""


def main(
    snapshot: Callable[[dict[str, Any]], dict[str, Any]],
    extents: Callable[[dict[str, Any]], tuple[Iterable[tuple[int, int, str]], int]],
    release: Callable[[dict[str, Any]], None],
) -> None:
    """Call the function that the last argument names, with the request from standard input.

    `snapshot` returns the answer. `extents` returns what changed as (start, length, kind), in any
    order, and the size of the disk; gaps are "same". `release` removes snapshots.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that `finally` blocks run
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
    """The output of a command. Its standard error goes to backy."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if ended.returncode:
        raise Refusal(f"{' '.join(command)} ended with code {ended.returncode}")
    return ended.stdout


def piped(first: tuple[str, ...], second: tuple[str, ...]) -> Iterator[str]:
    """The lines that the second command prints when it reads the output of the first one.

    The second command must fail if its input is incomplete.
    """
    writer = subprocess.Popen(first, stdout=subprocess.PIPE)
    reader = subprocess.Popen(second, stdin=writer.stdout, stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    assert reader.stdout
    writer.stdout.close()
    with reader.stdout:
        yield from reader.stdout
    for child, command in ((reader, second), (writer, first)):
        # A reader that has seen the end of the stream may exit before the writer has written all.
        if child.wait() and not (child is writer and child.returncode == -signal.SIGPIPE):
            raise Refusal(f"{' '.join(command)} ended with code {child.returncode}")


def cover(changed: Iterable[tuple[int, int, str]], size: int) -> Iterator[tuple[int, int, str]]:
    """Sort `changed`, fill the gaps with "same", and cut off what is beyond `size`."""
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
    """Extents as (start, end, kind), ascending. Where two kinds overlap, both become "data"."""
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
    """The names that `release` has to remove: `prefix` and the id of a revision."""
    ours = [(name, name[len(prefix) :]) for name in names if name.startswith(prefix)]
    return [name for name, revision in ours if is_outdated(revision, request)]


def is_outdated(revision: str, request: dict[str, Any]) -> bool:
    """Whether `release` has to remove the snapshot of `revision`; no, if that is no id."""
    if not ID.fullmatch(revision):
        return False
    if request["revision"] is None:
        return revision not in request["keep"]
    return bool(revision == request["revision"] and not request["is_kept"])
