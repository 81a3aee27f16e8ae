"""Runs a command of backy in this process, which takes milliseconds where a program takes 250.

What a program gets from its parent and leaves to the kernel is set and put back: arguments,
environment, signal handlers, the limit of open files, and the standard streams, also as
descriptors, since the programs that a command starts inherit them.

What this cannot show, and only a program can: that a command imports all it needs, whatever was
imported before it; closed or full standard streams at its end; signals; how much memory it takes;
that no lock, child or thread outlives it. test_program.py compares both ways for every command.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import IO, TextIO

import backy.cli
from tests.lab import dispositions

_DESCRIPTORS = (0, 1, 2)
_STDERR = 2
# They change what cannot be put back: the priority of the process, its event loop, its threads.
ONLY_AS_PROGRAMS = {"daemon", "mount", "scrub", "serve"}


def call(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, bytes, bytes]:
    """What `python -m backy` would end with for these arguments, and say on stdout and stderr."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with ExitStack() as stack:
            stack.enter_context(_environment(environment))
            stack.enter_context(dispositions.defaults())
            stack.enter_context(_open_files())
            stack.enter_context(_streams(out, err))
            code = _main(arguments)
        for file in (out, err):
            file.seek(0)
        return code, out.read(), err.read()


def _main(arguments: Sequence[str]) -> int:
    before, sys.argv = sys.argv, ["backy", *arguments]
    try:
        return backy.cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before


@contextmanager
def _environment(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    _be(environment)
    try:
        yield
    finally:
        _be(before)


def _be(environment: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


@contextmanager
def _open_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def _streams(out: IO[bytes], err: IO[bytes]) -> Iterator[None]:
    """Nothing to read, and these to write to, as descriptors and as sys.std…, as in a C.UTF-8."""
    streams = sys.stdin, sys.stdout, sys.stderr
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    saved = [os.dup(number) for number in _DESCRIPTORS]
    try:
        with Path(os.devnull).open("rb") as nothing:
            for number, file in zip(_DESCRIPTORS, (nothing, out, err), strict=True):
                os.dup2(file.fileno(), number)
        sys.stdin = _text(0, "r", "surrogateescape")
        sys.stdout = _text(1, "w", "surrogateescape")
        sys.stderr = _text(2, "w", "backslashreplace")
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = streams
        for number, copy in zip(_DESCRIPTORS, saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)


def _text(descriptor: int, mode: str, errors: str) -> TextIO:
    file = open(  # noqa: SIM115 - the descriptor is closed by whoever opened it
        descriptor, mode, encoding="utf-8", errors=errors, closefd=False
    )
    assert isinstance(file, TextIOWrapper)
    file.reconfigure(line_buffering=descriptor == _STDERR)
    return file
