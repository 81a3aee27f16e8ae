"""Operations on the history of a job: tag, remove, undo, purge, erase."""

from backy.errors import ConfigError, DamagedError, NotFoundError
from backy.model.revision import Revision, is_id
from backy.model.selector import select
from backy.operations.site import Site
from backy.repository import trash
from backy.repository.repository import Repository
from backy.repository.tags import refuse_held, retag
from backy.repository.trash import Purged


def tag_job(site: Site, job: str, spec: str, add: set[str], drop: set[str]) -> list[Revision]:
    """Add and drop tags of the revisions that `spec` names; return them with their new tags."""
    repository = site.repository(job)
    return retag(repository, _selected(repository, spec), add=add, drop=drop)


def remove_job(site: Site, job: str, spec: str) -> list[Revision]:
    """Move the revisions that `spec` names to the trash, as one batch; return them."""
    repository = site.repository(job)
    revisions = _selected(repository, spec)
    refuse_held(repository, revisions)
    trash.remove(repository, revisions)
    return revisions


def undo_job(site: Site, job: str) -> list[str]:
    """Bring back the batch that was removed last; return the ids of its revisions."""
    return trash.undo(site.repository(job))


def purge_job(site: Site, job: str, older_than_seconds: int = 0, spec: str | None = None) -> Purged:
    """Delete for good the revisions removed at least so many seconds ago, and free their space.

    With `spec` it deletes those that this names, which were not removed before.
    """
    repository = site.repository(job)
    only = _selected(repository, spec) if spec is not None else None
    refuse_held(repository, only or ())
    return trash.purge(repository, older_than_seconds, only)


def erase_job(site: Site, job: str) -> None:
    """Delete a whole repository for good. The job must not be configured.

    Raises ConfigError if it is, or if a problem in the configuration may hide it.
    """
    loaded = site.loaded
    if job in loaded.config.jobs:
        raise ConfigError(f"{job}: it is configured", "Remove it from the configuration first.")
    if loaded.problems:
        why = f"{job}: it may be configured, but the configuration has errors: {loaded.problems[0]}"
        raise ConfigError(why, "Fix the configuration first: backy config check.")
    repository = site.repository(job)
    refuse_held(repository, repository.history().revisions)
    trash.erase(repository)


def _selected(repository: Repository, spec: str) -> list[Revision]:
    """The revisions that `spec` names.

    Raises NotFoundError if there are none, and DamagedError if `spec` may also name revisions that
    cannot be read.
    """
    history = repository.history()
    try:
        selected = select(spec, history.revisions)
    except NotFoundError as error:
        raise history.explained(error) from None
    if history.unreadable and not is_id(spec):
        first = next(iter(history.unreadable.values()))
        why = f"{spec!r} may name a revision that cannot be read: {first.message}"
        raise DamagedError(f"{repository.name}: {why}", "Name one revision by its full id.")
    if not selected:
        raise NotFoundError(
            f"{repository.name}: {spec!r} names no revision", f"backy list {repository.name}"
        )
    return selected
