"""Parsers for arguments and options, which check values before a command does anything."""

import grp
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple, TypeVar

import typer

from backy.errors import ConfigError
from backy.model.names import check_disk_name, check_job, check_tag
from backy.units import parse_duration, parse_size

Value = TypeVar("Value")
_LEVELS = range(1, 20)
_LARGEST_PORT = 65535


class WrongValueError(typer.BadParameter):
    """A wrong value; `hint` says which values are allowed."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


def _typed(check: Callable[[str], Value]) -> Callable[[str | Value], Value]:
    """A typer parser that calls `check`. Defaults that are no text are not checked.

    Raises WrongValueError if `check` raises ConfigError.
    """

    @wraps(check)
    def parse(value: str | Value) -> Value:
        if not isinstance(value, str):
            return value
        try:
            return check(value)
        except ConfigError as error:
            raise WrongValueError(error.message, error.hint) from error

    return parse


job = _typed(check_job)
tag = _typed(check_tag)
duration = _typed(parse_duration)


@_typed
def span(text: str) -> str:
    """A duration above zero; returned as it was typed."""
    if not parse_duration(text):
        raise ConfigError(f"nothing can be read within {text}", "Use --within 30d.")
    return text


def _size(least: str, what: str) -> Callable[[str], int]:
    def size(text: str) -> int:
        value = parse_size(text)
        if value < parse_size(least):
            raise ConfigError(f"{text} {what}", f"Use {least} or more.")
        return value

    return _typed(size)


rate = _size("1MiB", "a second is too slow")
memory = _size("16MiB", "of memory is too little")


@_typed
def mark(text: str) -> str:
    """A tag to add, after a plus, or to drop, after a minus."""
    if text[:1] not in {"+", "-"} or not text[1:]:
        raise ConfigError(f"{text!r} neither adds nor drops a tag", "Write +TAG or -TAG.")
    if text[0] == "+":
        check_tag(text[1:])
    return text


@_typed
def level(text: str) -> int:
    """A level of zstd."""
    if not text.isdecimal() or int(text) not in _LEVELS:
        raise ConfigError(f"{text!r} is not a level of zstd", "Use 1 to 19.")
    return int(text)


@_typed
def block_size(text: str) -> int:
    """The size of a repository's blocks, in bytes."""
    from backy.repository.records import Settings, check_settings

    size = parse_size(text)
    check_settings(Settings("auto", size))
    return size


@_typed
def store(text: str) -> str:
    """The name of a store, or auto."""
    from backy.stores import store_class

    if text != "auto":
        store_class(text)
    return text


class DiskPlace(NamedTuple):
    """The place and the name of a disk; `name` is empty if none was typed."""

    name: str
    place: str


@_typed
def disk_place(text: str) -> DiskPlace:
    """[DISK=]PLACE. A file that is called like that is taken for the place."""
    name, separator, rest = text.partition("=")
    is_name = separator and not {"/", ":"} & {*name}
    if not is_name or (Path(text).exists() and not Path(rest).exists()):
        name, rest = "", text
    else:
        check_disk_name(name)
    path(rest)
    return DiskPlace(name, rest)


@_typed
def target(text: str) -> str:
    """The target of a restore: a path, a URL or a dash; it must not be empty."""
    path(text)
    return text


@_typed
def job_word(text: str) -> str:
    """JOB or JOB@REV; returned as it was typed."""
    check_job(text.rpartition("@")[0] or text)
    return text


@_typed
def group(name: str) -> int:
    """The number of a group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"there is no group {name!r}", "getent group shows all.") from None


class Listen(NamedTuple):
    """An address of this machine."""

    host: str
    port: int


@_typed
def listen(text: str) -> Listen:
    """ADDRESS:PORT, with an IP address; one of IPv6 in brackets."""
    host, _, port = text.rpartition(":")
    with suppress(ValueError):
        address = ip_address(host[1:-1] if host[:1] + host[-1:] == "[]" else host)
        if port.isdecimal() and int(port) <= _LARGEST_PORT:
            return Listen(str(address), int(port))
    raise ConfigError(f"{text!r} is no IP address and port", "Write 127.0.0.1:10809.")


@_typed
def path(text: str) -> Path:
    """A path that is not empty: Path("") would be the current folder."""
    if not text:
        raise ConfigError("the path is empty", "Is a shell variable not set?")
    return Path(text)
