"""The verbs that change which revisions there are: tag, remove, undo, purge."""

from __future__ import annotations

from backy.errors import ConfigError, DamagedError, NotFoundError
from backy.model.revision import Revision, is_id
from backy.model.selector import select
from backy.operations.site import Site
from backy.repository import trash
from backy.repository.repository import Repository
from backy.repository.trash import Purged


def tag_job(site: Site, job: str, spec: str, add: set[str], drop: set[str]) -> list[Revision]:
    """Add and drop tags of the revisions that `spec` names; give them as they are now."""
    repository = site.repository(job)
    return repository.retag(_selected(repository, spec), add=add, drop=drop)


def remove_job(site: Site, job: str, spec: str) -> list[Revision]:
    """Move the revisions that `spec` names to the trash, as one batch; give them."""
    repository = site.repository(job)
    revisions = _selected(repository, spec)
    trash.remove(repository, revisions)
    return revisions


def undo_job(site: Site, job: str) -> list[str]:
    """Bring back the batch that was removed last; give the ids of its revisions."""
    return trash.undo(site.repository(job))


def purge_job(site: Site, job: str, older_than_seconds: int = 0) -> Purged:
    """Delete for good what was removed at least so many seconds ago, and free its space."""
    return trash.purge(site.repository(job), older_than_seconds)


def erase_job(site: Site, job: str) -> None:
    """Delete a whole repository for good, where the configuration certainly has no such job.

    Raises ConfigError where it has, or where that cannot be told.
    """
    loaded = site.loaded
    if job in loaded.config.jobs:
        raise ConfigError(f"{job}: it is configured", "Take it out of the configuration first.")
    if loaded.problems:
        why = f"{job}: nobody can tell that it is not configured: {loaded.problems[0]}"
        raise ConfigError(why, "Mend the configuration first: backy config check.")
    trash.erase(site.repository(job))


def _selected(repository: Repository, spec: str) -> list[Revision]:
    """Some revisions. Raises NotFoundError for none, DamagedError where others may be meant."""
    history = repository.history()
    found = select(spec, history.revisions)
    if history.unreadable and not is_id(spec):
        first = next(iter(history.unreadable.values()))
        why = f"{spec!r} may not mean what it says: {first.message}"
        raise DamagedError(f"{repository.name}: {why}", "Name one revision by its full id.")
    if not found:
        raise NotFoundError(
            f"{repository.name}: {spec!r} names no revision", f"backy list {repository.name}"
        )
    return found
