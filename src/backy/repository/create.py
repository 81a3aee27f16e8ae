"""Make the repository of a job, renew its format, or take it back while it is empty."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from backy.errors import StoreError, translated
from backy.model.names import check_job
from backy.model.revision import NEWEST_FORMAT
from backy.repository.base import mark_base
from backy.repository.manifest import Settings, check_settings, encode_settings
from backy.repository.repository import PATIENCE, Repository
from backy.repository.script import script
from backy.stores import store_class
from backy.system import files, folders
from backy.system.place import Place


def create(base: Path, job: str, settings: Settings) -> Repository:
    """Make the repository of `job`: its folders, restore.sh, and last of all repository.json.

    The store "auto" means images if the file system can share extents, else chunks. A repository
    that exists is left as it is. Raises ConfigError if a setting is not possible, StoreError if the
    folder cannot be made.
    """
    path = base / check_job(job)
    check_settings(settings)
    mark_base(base)
    with translated(StoreError, f"{job}: making {path}", "Check the permissions."):
        folders.make_folder(path)
        root = Place.at(path)
        folders.make_folder(root / "revisions")
        if settings.store == "auto":
            settings = replace(settings, store="images" if _shares_extents(root) else "chunks")
        store_class(settings.store)
        with folders.locked(root / "revisions", patience_seconds=PATIENCE):
            if not (root / "repository.json").exists():  # another process may have made it
                folders.write_file(root / "restore.sh", script(), mode=0o755)
                folders.write_file(root / "repository.json", encode_settings(settings))
                folders.sync_folder(base)
    return Repository(path)


def renew_format(repository: Repository) -> bool:
    """Allow revisions of the newest format, durably; return whether that is new.

    From then on older versions of backy refuse the repository. Raises StoreError.
    """
    if repository.settings.format == NEWEST_FORMAT:
        return False
    repository.change_settings(replace(repository.settings, format=NEWEST_FORMAT))
    return True


def discard_empty(path: Path) -> None:
    """Delete a repository if it is empty: it has no revision and no chunk.

    Keeps the job's status.json. Deletes what it can, and never raises OSError.
    """
    with suppress(OSError):
        root = Place.at(path)
        if any((root / name).exists() for name in ("chunks", "quarantine", "trash")):
            return
        with folders.locked(root / "revisions"):
            if folders.list_folder(root / "revisions"):
                return
            # First, because a folder without repository.json is not a repository.
            for name in ("repository.json", "restore.sh", "lock"):
                folders.remove_file(root / name)
            for name in ("pages", "twins"):  # of drafts
                if (root / name).exists():
                    folders.remove_tree(root / name)
            folders.remove_empty_folder(root / "revisions")
        folders.remove_empty_folder(path)


def _shares_extents(folder: Place) -> bool:
    try:
        with files.create_unnamed(folder) as origin, files.create_unnamed(folder) as clone:
            origin.write(0, bytes(files.PAGE))
            return clone.clone_from(origin)
    except OSError:
        return False
