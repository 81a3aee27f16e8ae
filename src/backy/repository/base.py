"""The base directory, and which jobs have a repository in it.

A marker tells it from the empty folder below an unmounted file system.
"""

from collections.abc import Callable, Container
from pathlib import Path

from backy.errors import StoreError, translated
from backy.model.names import is_job
from backy.system import folders
from backy.system.place import Place

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


def jobs(
    base: Path, leave: Callable[[str], None] = lambda _: None, known: Container[str] = ()
) -> list[str]:
    """The jobs that have a repository in a base directory, but not the `known` ones; sorted.

    Raises StoreError if it cannot be listed, or does not exist: its name may be wrong.

    A folder that we may not look into counts: a job must not be missing without a word. `leave`
    gets the folders with a repository.json that no job can be called: somebody's copies.
    """

    def is_repository(name: str) -> bool:
        try:
            return (Place.at(base / name) / "repository.json").exists()
        except PermissionError:
            return name != "lost+found"  # which mkfs makes

    with translated(StoreError, f"listing {base}"):
        unknown = [name for name in folders.list_folder(base) if name not in known]
        names = [*filter(is_repository, unknown)]
        if not names and not base.exists():
            hint = "Is the name right, and the file system mounted? backy init makes the folder."
            raise StoreError(f"there is no folder {base}", hint)
    for name in names:
        if not is_job(name) and not name.startswith("."):
            leave(name)
    return list(filter(is_job, names))
