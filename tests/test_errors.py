"""Errors carry what failed, a hint and an exit code; the tree on top of the module is true."""

import errno
import inspect
import os
import re

import pytest

from backy import errors
from backy.errors import BackyError, FullError, SourceError, StoreError, TargetError, translated

CLASSES = {
    name: kind
    for name, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, BackyError)
}
EVERY_CLASS = pytest.mark.parametrize("kind", CLASSES.values(), ids=CLASSES)
LINE = re.compile(r"    ([ │├└─]*)(\w+Error) +(\d+) {3}\S.*")


def drawn() -> dict[str, tuple[str, int]]:
    """The tree in the docstring: the parent and the exit code of each class."""
    found: dict[str, tuple[str, int]] = {}
    path = ["Exception"]
    for line in (errors.__doc__ or "").splitlines():
        if match := LINE.fullmatch(line):
            branch, name, code = match.groups()
            depth = len(branch) // 4
            del path[depth + 1 :]
            found[name] = (path[-1], int(code))
            path.append(name)
    return found


def test_the_drawn_tree_has_every_class_with_its_base_and_its_exit_code() -> None:
    assert drawn() == {
        name: (kind.__base__.__name__ if kind.__base__ else "", kind.exit_code)
        for name, kind in CLASSES.items()
    }


def test_every_class_has_an_exit_code_of_its_own() -> None:
    codes = [kind.exit_code for kind in CLASSES.values()]
    assert len(set(codes)) == len(codes)
    # 0 is success, 70 a bug; the shell takes 126 and up, of which 130 is Ctrl-C.
    assert not {0, 70} & set(codes)
    assert all(0 < code < 126 or code == 130 for code in codes)


@EVERY_CLASS
def test_an_error_has_a_message_a_hint_and_a_docstring(kind: type[BackyError]) -> None:
    error = kind("vm1: it failed", "Try again.")
    assert str(error) == error.message == "vm1: it failed"
    assert error.hint == "Try again."
    assert kind("vm1: it failed").hint == ""
    assert kind.__doc__
    assert "\n" not in kind.__doc__


@EVERY_CLASS
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT], ids=["full", "over-quota"])
def test_only_a_store_can_be_full(kind: type[BackyError], number: int) -> None:
    with pytest.raises(BackyError) as caught, translated(kind, "vm1: writing", "Try again."):
        raise OSError(number, os.strerror(number))
    full = issubclass(kind, StoreError)
    assert type(caught.value) is (FullError if full else kind)
    assert caught.value.message == f"vm1: writing: {os.strerror(number)}"
    assert "backy purge" in caught.value.hint if full else caught.value.hint == "Try again."
    assert isinstance(caught.value.__cause__, OSError)


@EVERY_CLASS
def test_an_oserror_becomes_the_kind_that_was_asked_for(kind: type[BackyError]) -> None:
    with pytest.raises(kind, match=r"^reading x: Input/output error$") as caught:  # noqa: SIM117
        with translated(kind, "reading x", "Look at dmesg."):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert caught.value.hint == "Look at dmesg."


def test_an_oserror_without_a_number_is_told_by_its_text() -> None:
    with pytest.raises(SourceError, match=r"^reading x: it is strange$"):  # noqa: SIM117
        with translated(SourceError, "reading x"):
            raise OSError("it is strange")


@pytest.mark.parametrize(
    "raised", [ZeroDivisionError(), TargetError("full", "hint"), KeyboardInterrupt()], ids=repr
)
def test_bugs_and_errors_that_are_told_already_pass_unchanged(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, translated(SourceError, "reading x"):
        raise raised
    assert caught.value is raised


def test_nothing_is_raised_where_nothing_fails() -> None:
    with translated(SourceError, "reading x"):
        pass
