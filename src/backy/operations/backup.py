"""Backup: make a new revision of a job, and record success or failure."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backy.errors import BusyError, CancelledError, ConfigError, StoreError, UsageError
from backy.image.progress import SILENCE, Watcher
from backy.model.revision import Revision, is_ahead
from backy.operations.hooks import Runner
from backy.operations.revision_backup import RevisionBackup
from backy.operations.site import Site
from backy.repository import backup_status, status
from backy.repository.create import create, discard_empty
from backy.repository.records import Settings
from backy.repository.repository import DEFAULT_BLOCK, Repository, is_repository
from backy.sources import Source, open_source


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """Options of one backup. Those that are left out come from the configuration.

    `source` has the settings of a source. `tags` replace the tags that are due. `is_verified` is as
    in `backup`. `store`,
    `block_size` (bytes) and `level` only apply when the repository is made.
    """

    source: Mapping[str, object] | None = None
    tags: tuple[str, ...] = ()
    is_verified: bool = False
    store: str | None = None
    block_size: int | None = None
    level: int | None = None


def backup_job(
    site: Site, job: str, options: BackupOptions = BackupOptions(), *, watcher: Watcher = SILENCE
) -> Revision:
    """Back up a job, and return the new revision. Makes the repository if it is missing.

    Runs the job's hooks, and records success or failure in status.json. Raises UsageError if
    `options` do not fit the repository, ConfigError if no source is known, and what `backup`
    raises. A mistake in `options` leaves no trace: no failure is counted, no hook runs, and no
    empty repository is left behind.
    """
    root = site.root(job)
    _check_options(root, options)
    settings = site.source_settings(job) if options.source is None else options.source
    is_jobs_own = options.source is None or _is_known(site, job, options.source)
    hooks = site.hooks(job, watcher.note)
    is_new = not is_repository(root)
    try:
        with _failure_recorded(root, hooks) if is_jobs_own else nullcontext():
            with _typed(is_typed=options.source is not None):
                source = open_source(settings)
            repository = _made(site, job, options) if is_new else site.repository(job)
            tags = options.tags or _due_tags(site, repository)
        return backup(
            repository,
            source,
            tags=tags,
            hooks=hooks,
            watcher=watcher,
            remember=settings,
            record_failure=is_jobs_own,
            is_verified=options.is_verified,
        )
    except BusyError:
        raise
    except BaseException:
        if is_new:
            discard_empty(root)
        raise


def _check_options(root: Path, options: BackupOptions) -> None:
    """Raises UsageError if an option contradicts the settings of the existing repository."""
    if not is_repository(root):
        return
    settings = Repository(root).settings
    for name in ("store", "block_size", "level"):
        wanted, actual = getattr(options, name), getattr(settings, name)
        if wanted not in {None, actual, "auto"}:
            why = f"the repository has {name.replace('_', ' ')} {actual}, not {wanted}"
            hint = "That is chosen once; back up to a new job to change it."
            raise UsageError(f"{root.name}: {why}", hint)


def _is_known(site: Site, job: str, settings: Mapping[str, object]) -> bool:
    """Whether these settings are those that the job would use without the option."""
    with suppress(ConfigError):
        return settings == site.known_source(job)
    return False


@contextmanager
def _typed(*, is_typed: bool) -> Iterator[None]:
    """A ConfigError in the body is a UsageError if it is about options."""
    try:
        yield
    except ConfigError as error:
        raise (UsageError if is_typed else ConfigError)(error.message, error.hint) from error


def _made(site: Site, job: str, options: BackupOptions) -> Repository:
    """A new repository. Options take precedence over the configuration."""
    config = site.config_of(job)
    values: dict[str, Any] = {"store": "auto", "block_size": DEFAULT_BLOCK, "level": 1}
    if config:
        values |= _given(config.jobs[job], values)
    chosen = _given(options, values)
    with _typed(is_typed=bool(chosen)):
        create(site.base, job, Settings(**(values | chosen)))
    return site.repository(job)


def _given(owner: object, names: Iterable[str]) -> dict[str, Any]:
    """The values of the attributes `names` of `owner`, without those that are None."""
    values = {name: getattr(owner, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _due_tags(site: Site, repository: Repository) -> tuple[str, ...]:
    """The tags of a backup by hand: those that the next scheduled backup would get."""
    from backy.policy.schedule import next_run, spread  # noqa: PLC0415

    job, now = repository.name, datetime.now(UTC)
    if not (config := site.config_of(job)):
        return ()
    schedule, last, has_history = config.intervals(job), dict[str, datetime](), False
    for _, revision in repository.newest_first():
        if isinstance(revision, Revision) and not is_ahead(revision.time, now):
            last = dict.fromkeys(revision.tags, revision.time) | last
            has_history = True
        if schedule.keys() <= last.keys():
            break
    return tuple(sorted(next_run(schedule, spread(job, schedule), last, has_history, now).tags))


@contextmanager
def _failure_recorded(root: Path, hooks: Runner | None) -> Iterator[None]:
    """If the body fails, run the hooks for that and record the failure in status.json.

    BusyError is no failure. A cancelled backup runs the hooks, but is not counted as a failure.
    """
    try:
        yield
    except BusyError:
        raise
    except BaseException as error:
        if hooks:
            hooks.run("on-failure", error=str(error))
        if not isinstance(error, CancelledError):
            message, now = str(error), datetime.now(UTC)
            with suppress(StoreError):  # the user must see the error of the backup instead
                status.update(root, lambda old: backup_status.failed(old, message, now))
        raise


def backup(
    repository: Repository,
    source: Source,
    *,
    tags: tuple[str, ...] = (),
    hooks: Runner | None = None,
    watcher: Watcher = SILENCE,
    now: datetime | None = None,
    remember: Mapping[str, object] | None = None,
    record_failure: bool = True,
    is_verified: bool = False,
) -> Revision:
    """Make a revision of all disks of `source`, publish it and return it; `now` is its time.

    Records success in status.json, and failure, too, unless `record_failure` is False. After a
    success, `remember` has the settings of the source for backups that name none. Warnings
    go to `watcher` and into the revision. With `is_verified` every block of the revision is read
    back before it is published, not only a sample. The hooks after the backup run last; if one of
    them fails, that is recorded, and the revision stays.

    Raises BusyError if the job is locked, by another backup for example, SourceError, StoreError,
    FullError, or HookError if a required hook failed; no revision is published then. If the store
    is full, what this backup wrote is deleted. CancelledError says whether it was published.
    """
    attempt = RevisionBackup(
        repository, source, tags, hooks, watcher, now, dict(remember or {}), is_verified
    )
    recorded = _failure_recorded(repository.folder, hooks) if record_failure else nullcontext()
    try:
        with recorded, repository.exclusive("backup"):
            revision = attempt.run()
        attempt.run_hooks_after(revision)
    except CancelledError as error:
        hint = "Nothing was published; run it again."
        if attempt.published:
            published = f"Revision {attempt.published.id} is published"
            hint = f"{published}; only the steps after that were cut short."
        raise CancelledError(error.message, hint) from error
    return revision
