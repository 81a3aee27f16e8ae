"""restore.sh in a repository: the script that lists and restores without backy."""

from __future__ import annotations

from contextlib import suppress
from importlib import resources

from backy.errors import StoreError, translated
from backy.repository.repository import Repository
from backy.system import folders
from backy.units import MiB


def script() -> bytes:
    """The content of restore.sh in this version."""
    return resources.files("backy.repository").joinpath("restore.sh").read_bytes()


def renew_script(repository: Repository) -> bool:
    """Replace restore.sh if it differs from this version's; return whether it did.

    The script has no hash, so this comparison is what detects damage. Raises StoreError.
    """
    path = repository.root / "restore.sh"
    content = script()
    with translated(StoreError, f"{repository.name}: writing {path}"):
        with suppress(OSError):  # missing or unreadable: write it
            if folders.read_file(path, MiB) == content:
                return False
        folders.write_file(path, content, mode=0o755)
    return True
