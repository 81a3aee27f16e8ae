"""A place with a repository to make hostile, a neighbour that must not notice, and a witness."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cli.runner import environment
from tests.lab.inotify import watched

MIB = 1024**2
MOST = 50 * MIB  # bytes that a hostile file may cost
CODES = {0, 3, 4, 5, 6, 7, 8, 9, 10}  # 2 would be a test that asks wrongly, 70 is a bug
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a piece of work ended. `touched` has the real paths, and whether they were written."""

    signal: int
    out: str
    err: str
    code: int | None = None
    error: str = ""
    message: str = ""
    bug: str = ""
    peak: int = 0
    moments: int = 0  # how often the path was used that was exchanged
    touched: list[tuple[str, bool]] = field(default_factory=list)


class Child:
    """The other side of tests.fuzz.child."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, what: str, *arguments: str | int | Path, is_measured: bool = True) -> Outcome:
        """Have it do one piece of work, in a fork of its own; `peak` is of no use unmeasured."""
        plain = [str(each) if isinstance(each, Path) else each for each in arguments]
        request = {"what": what, "arguments": plain, "is_measured": is_measured}
        answer = self._ask(request)
        touched = [(path, is_writing) for path, is_writing in answer.pop("touched", [])]
        return Outcome(**answer, touched=touched)

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        to, of = self._process.stdin, self._process.stdout
        assert to
        assert of
        to.write(json.dumps(request) + "\n")
        to.flush()
        answer: dict[str, Any] = json.loads(of.readline())
        return answer


@contextmanager
def child(under: Sequence[str] = ()) -> Iterator[Child]:
    """Start it, `under` another program where there is one; it ends with the context."""
    path = f"{environment()['PYTHONPATH']}{os.pathsep}{ROOT}"
    # Strict, since a user's terminal is: only C locales let any bytes pass.
    settings = environment(
        PYTHONPATH=path, PYTHONIOENCODING="utf-8:strict", PYTHONDONTWRITEBYTECODE="1"
    )
    command = [*under, sys.executable, "-m", "tests.fuzz.child", *under[:1]]
    with subprocess.Popen(
        command, env=settings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield Child(process)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What lies in one folder: `base` with the repository vm1, its source, a target, a neighbour.

    The neighbour is another user's copy of the repository: what a link or a name may lead to.
    """

    child: Child
    folder: Path

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def root(self) -> Path:
        return self.base / "vm1"

    @property
    def neighbour(self) -> Path:
        return self.folder / "neighbour"

    def revisions(self) -> list[Path]:
        """The folders of the revisions as they were made, oldest first."""
        made = sorted((self.neighbour / "revisions").iterdir())
        return [self.root / "revisions" / path.name for path in made]

    def backy(
        self,
        *arguments: str | Path,
        is_measured: bool = False,
        meanwhile: Sequence[str | int | Path] = ("backy",),
    ) -> Outcome:
        """Run a command; it has to end as a command may, and to leave all else alone.

        `meanwhile` is what the child is to do beside, with its arguments.
        """
        before = fingerprint(self.neighbour)
        what, *more = meanwhile
        words = (*more, "--base-dir", self.base, *arguments)
        with watched(self.neighbour) as watch:
            outcome = self.child.do(str(what), *words, is_measured=is_measured)
            touched = watch.events()
        said = f"{arguments}: {outcome.code} {outcome.out}{outcome.err}"
        assert not touched, f"the neighbour's {touched} were opened: {said}"
        assert outcome.signal == 0, f"killed by {outcome.signal}: {said}"
        assert not outcome.bug, outcome.bug
        assert outcome.code in CODES | ({1, 2} if "check" in arguments else set()), said
        assert "Traceback" not in outcome.err, said
        assert fingerprint(self.neighbour) == before, f"the neighbour was changed: {said}"
        written = [path for path, writes in outcome.touched if writes and not self._ours(path)]
        assert not written, f"{written} were written: {said}"
        assert not is_measured or outcome.peak <= MOST, f"{outcome.peak / MIB:.1f} MiB: {said}"
        if "--json" not in arguments:
            odd = {each for each in outcome.out + outcome.err if not each.isprintable()} - {"\n"}
            assert not odd, f"{odd} could steer a terminal: {said}"
        return outcome

    def _ours(self, path: str) -> bool:
        """Whether it may be written: the repository, the target, a nameless clone of the source."""
        beside = ("target", ".target.", "twin", "#")
        own = (f"{self.root}/", f"{self.base}/.vm1.", *(f"{self.folder}/{each}" for each in beside))
        return path.startswith(own) or path in {
            str(self.root),
            str(self.folder),
        }


def fingerprint(folder: Path) -> dict[str, tuple[int, int, str]]:
    """What there is below a folder: mode, time of the last change, hash."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode,
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest()
            if stat.S_ISREG(path.lstat().st_mode)
            else "",
        )
        for path in [folder, *sorted(folder.rglob("*"))]
    }
