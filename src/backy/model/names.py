"""Rules for the names of jobs, disks and tags."""

import re
import unicodedata

from backy.errors import ConfigError

_LONGEST_NAME = 128  # bytes; half of what file systems allow, so that a suffix fits
_NAME = re.compile(r"[^\W_][\w.@+-]*")
_DISK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAG = re.compile(r"[^\W_][\w.:@-]{0,63}")


def is_disk_name(name: str) -> bool:
    """Whether a disk, or a file beside the disks, may have this name in a revision's folder."""
    return bool(_DISK.fullmatch(name))


def check_disk_name(name: str) -> str:
    """Return `name`. Raises ConfigError if it cannot name a file in a revision's folder."""
    if not is_disk_name(name):
        allowed = "letters, digits, dots, dashes or underscores; a letter or digit first."
        raise ConfigError(f"{name!r} cannot be the name of a disk", f"Use up to 64 {allowed}")
    return name


def check_tag(tag: str) -> str:
    """Return `tag`. Raises ConfigError if it cannot be used in a revision word or in a shell."""
    if not _TAG.fullmatch(tag) or ".." in tag:
        allowed = "letters, digits, dots, dashes, colons or @; a letter or digit first."
        raise ConfigError(f"{tag!r} cannot be a tag", f"Use up to 64 {allowed}")
    return tag


def is_job(name: str) -> bool:
    """Whether a job may have this name."""
    is_valid = _NAME.fullmatch(name) and unicodedata.is_normalized("NFC", name)
    return bool(is_valid) and len(name.encode(errors="replace")) <= _LONGEST_NAME


def check_job(name: str) -> str:
    """Return `name`. Raises ConfigError if it cannot safely be the name of a folder."""
    if not is_job(name):
        hint = "Use letters, digits and . _ @ + -; a letter or digit first; at most 128 bytes."
        raise ConfigError(f"{name!r} cannot be the name of a job", hint)
    return name
