"""The base directory. A marker tells it from the empty folder below an unmounted file system."""

from pathlib import Path

from backy.errors import StoreError, translated
from backy.system import folders

MARKER = ".backy-base"
_TEXT = b"The repositories of backy are here. Without this file they count as not mounted.\n"


class NotMountedError(StoreError):
    """The base directory has no marker."""


def mark_base(base: Path) -> None:
    """Make the base directory and its marker, if they are missing. Raises StoreError."""
    with translated(StoreError, f"making {base / MARKER}", "Check the permissions."):
        if not (base / MARKER).exists():
            folders.make_folder(base, mode=0o755)
            folders.write_file(base / MARKER, _TEXT, mode=0o644)


def require_base(base: Path) -> None:
    """Raises NotMountedError if the marker is missing, StoreError if that is unknown."""
    with translated(StoreError, f"looking for {base / MARKER}", "Check the permissions."):
        if (base / MARKER).exists():
            return
    why = f"{base} has no file {MARKER}, so its file system is probably not mounted"
    raise NotMountedError(why, "Mount it. If this is the right folder, run backy init once.")
