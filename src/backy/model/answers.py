"""The answers: what a command prints as its only JSON value, and what the daemon sends back.

The rules of backy.model.messages hold here, too.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from backy.model.messages import (
    BlockSize,
    Bytes,
    Count,
    DiskName,
    JobName,
    Length,
    ReportRecord,
    RevisionId,
    RevisionIds,
    RevisionRecord,
    Seconds,
    Text,
    Time,
)

JobSettings = Mapping[str, Any]  # what Job in backy.config.settings serializes to
JobState = Literal[
    "running", "waiting", "paused", "failed", "damaged", "unreadable", "idle", "new", "broken"
]
PoolName = Literal["fast", "slow"]
Path = Annotated[str, ("pattern", "^/")]
TaskVerb = Annotated[str, ("enum", "the tasks of the daemon")]


# What is stored.


class JobAnswer(TypedDict):
    """What concerns one job."""

    job: JobName


class ListedJob(JobAnswer):
    """One job.

    store: The store of its repository: images, chunks, or that of a plug-in.
    block_size: The size of a block, in bytes; a multiple of 64 KiB.
    revisions: Its revisions, oldest first.
    damaged: Why some revisions cannot be listed; for people.
    """

    store: str
    block_size: BlockSize
    revisions: Sequence[RevisionRecord]
    damaged: Sequence[str]


class UnusableJob(JobAnswer):
    """One job whose repository cannot be opened.

    error: Why; for people.
    """

    error: Text


class ListAnswer(TypedDict):
    """The jobs, sorted by name.

    jobs: The jobs that can be read, or only the named one.
    unusable: The jobs whose repositories cannot be opened.
    """

    jobs: Sequence[ListedJob]
    unusable: Sequence[UnusableJob]


class ChangedRange(TypedDict):
    """One range.

    start: Where it starts, in bytes.
    length: Its length, in bytes.
    kind: What it holds in the newer revision.
    """

    disk: DiskName
    start: Bytes
    length: Length
    kind: Literal["data", "zero"]


class DiffAnswer(JobAnswer):
    """What changed from `old` to `new`.

    old: The older revision.
    new: The newer revision.
    extents: The ranges that changed, in whole blocks, ascending for each disk.
    """

    old: RevisionId
    new: RevisionId
    extents: Sequence[ChangedRange]


class FindAnswer(JobAnswer):
    """Where a disk is.

    revision: The revision.
    store: The store of the repository. The path is that of the plain image if it is images, and
      that of the index if it is chunks.
    path: The path, from the root.
    """

    revision: RevisionId
    disk: DiskName
    store: str
    path: Path


class KeptRestore(TypedDict):
    """One restore.

    id: Its name: the time in UTC and four random characters.
    time: When it began, in UTC and whole seconds.
    revision: The revision.
    targets: The disks and where to, as it was named; for people.
    asked_by: The user and the host; for people.
    data: How much data its finished disks have, in bytes.
    written: How much of that the targets did not have, in bytes.
    seconds: How long it took, in seconds.
    result: done; unfinished while it runs, or if it was killed; else why it failed, for people.
    """

    id: RevisionId
    time: Time
    revision: RevisionId
    targets: str
    asked_by: str
    data: Bytes
    written: Bytes
    seconds: Seconds
    result: str


class HistoryAnswer(JobAnswer):
    """The last restores of a job.

    restores: The restores, oldest first.
    """

    restores: Annotated[Sequence[KeptRestore], ("maxItems", 100)]


class TagAnswer(JobAnswer):
    """The revisions as they are now.

    revisions: The revisions that were named, changed or not.
    """

    revisions: Annotated[Sequence[RevisionRecord], ("minItems", 1)]


class InitAnswer(TypedDict):
    """The base directory is ready.

    base: Its path.
    marker: The name of the file in it that says so.
    """

    base: str
    marker: str


class RemoveAnswer(JobAnswer):
    """What was moved to the trash.

    removed: The ids of the revisions.
    """

    removed: RevisionIds


class UndoAnswer(JobAnswer):
    """What came back from the trash.

    restored: The ids of the revisions.
    """

    restored: RevisionIds


class PurgeAnswer(JobAnswer):
    """What was deleted for good.

    purged: The ids of the revisions.
    kept: The ids of the revisions that stay in the trash: too young, or being read.
    freed: The chunks and pages that were deleted, in bytes.
    unknown: What could not be read; what only that may use was kept. For people.
    """

    purged: RevisionIds
    kept: RevisionIds
    freed: Bytes
    unknown: Sequence[str]


class EraseAnswer(JobAnswer):
    """With --job: the whole repository was deleted.

    erased: That it is gone.
    """

    erased: Literal[True]


class ReportsAnswer(TypedDict):
    """The reports of all jobs, or of the one that was named.

    reports: The reports by job, oldest first.
    """

    reports: Sequence[ReportRecord]


class ReportsDeleteAnswer(JobAnswer):
    """What was deleted.

    deleted: The ids of the reports.
    """

    deleted: RevisionIds


# What is configured.


class ConfigProblem(TypedDict):
    """One error.

    file: The file that has it.
    line: How many lines into the file it is, counted from 1.
    key: The keys that lead to it, with dots between them; empty for the whole file.
    message: File, line, key, what is there and what is allowed; for people.
    """

    file: Text
    line: Length
    key: str
    message: Text


class LookedSource(JobAnswer):
    """What a look at the source of a job found.

    job: The name of the job.
    disks: The disks by name; none if only a snapshot can tell.
    error: Why it could not be opened; empty if it could.
    """

    disks: Sequence[DiskName]
    error: str


class ConfigCheckAnswer(TypedDict):
    """The result of the check.

    file: The main file.
    jobs: How many jobs are valid.
    problems: All errors, sorted by file and line.
    warnings: What is valid, but hardly meant, sorted likewise.
    sources: What a look at the sources found, by job; none without --sources.
    """

    file: Text
    jobs: Count
    problems: Sequence[ConfigProblem]
    warnings: Sequence[ConfigProblem]
    sources: Sequence[LookedSource]


class JobsAnswer(TypedDict):
    """What is configured.

    jobs: The jobs by name.
    not_configured: The names of the repositories without a job, sorted.
    """

    jobs: Mapping[JobName, JobSettings]
    not_configured: Sequence[Text]


# What the daemon does.


class BootAnswer(TypedDict):
    """What a boot would run.

    commands: Lines for a shell, in their order; those that begin with # are for people.
    """

    commands: Sequence[Text]


class ServeAnswer(TypedDict):
    """The server listens.

    uris: The NBD URIs of the disks that it offers, of the newest revision of each job; other
      revisions have their id in its place.
    """

    uris: Sequence[Text]


class RunAnswer(JobAnswer):
    """The daemon backs the job up before all others.

    state: What it does now.
    """

    state: Literal["waiting"]


class PauseAnswer(JobAnswer):
    """The job starts nothing by itself from now on.

    state: What it does now.
    """

    state: Literal["paused"]


class ResumeAnswer(JobAnswer):
    """The job goes on.

    state: What it does now.
    """

    state: Literal["resumed"]


class JobOverview(JobAnswer):
    """One job.

    state: What it does, or how it is: new without a revision, failed if the last backup did,
      damaged if that is all that is wrong, unreadable if its repository cannot be read, broken if
      backy has a bug that shows only with this job.
    last: When the newest revision was begun; null if there is none.
    next: When the next backup is due; null if the job is paused, and without a daemon.
    overdue_seconds: How much older the newest revision is than allowed, in seconds; without a
      revision, the time since the last failure.
    revisions: How many revisions there are.
    seconds: How long the last successful backup took, in seconds.
    errors: How many backups failed since then.
    error: Why the last one failed, or why the repository cannot be read; for people.
    damage: How many revisions are distrusted, and how many reports there are; for people. Empty if
      there are none.
    tags: Only if a next backup is planned: the tags that it gets.
    verb: Only while it runs or waits: the command.
    pool: Only while it runs or waits: the pool in which it takes a slot.
    due: Only while it runs or waits: since when it has been due.
    pid: Only while it runs: its process; null before that is started.
    running_seconds: Only while it runs: for how long, in seconds.
    done: Only while it reports its progress: how much is done, in bytes.
    total: Only while it reports its progress: how much there is to do, in bytes.
    rate: Only while it reports its progress: the mean rate since it began, in bytes a second.
    eta_seconds: Only while it reports its progress: the time left at that rate, in seconds; null
      if it is unknown.
    """

    state: JobState
    last: Time | None
    next: Time | None
    overdue_seconds: Seconds
    revisions: Count
    seconds: Seconds
    errors: Count
    error: str
    damage: str
    tags: NotRequired[Sequence[str]]
    verb: NotRequired[TaskVerb]
    pool: NotRequired[PoolName]
    due: NotRequired[Time]
    pid: NotRequired[Length | None]
    running_seconds: NotRequired[Seconds]
    done: NotRequired[Bytes]
    total: NotRequired[Bytes]
    rate: NotRequired[Bytes]
    eta_seconds: NotRequired[Seconds | None]


class PoolUse(TypedDict):
    """How full a pool is.

    slots: How many commands may run at once.
    in_use: How many commands run.
    queued: How many commands wait.
    """

    slots: Count
    in_use: Count
    queued: Count


class Pools(TypedDict):
    """How full the pools of the daemon are.

    fast: The pool for short backups.
    slow: The pool for long backups and for scrubs.
    """

    fast: PoolUse
    slow: PoolUse


class StatusAnswer(TypedDict):
    """The state of all jobs.

    jobs: All configured jobs; without a configuration, all repositories.
    problem: That the daemon is not running, or why it does not use the configuration as the files
      have it now; empty if neither is so.
    pools: Only with a daemon: how full its pools are.
    stopping: Only with a daemon: whether it was told to stop and waits for what runs.
    """

    jobs: Sequence[JobOverview]
    problem: str
    pools: NotRequired[Pools]
    stopping: NotRequired[bool]


# The socket of the daemon.


class DaemonRequest(TypedDict):
    """What the daemon is asked to do; `job` for "run" and "look" only."""

    do: Literal["status", "promises", "reload", "run", "look"]
    job: NotRequired[str]


class PromisesReply(TypedDict):
    """For `backy check`: by job, the shortest interval and `scrub: within` or null, in seconds.

    `broken` has a bug by job, `slow` what takes unusually long.
    """

    jobs: Mapping[str, tuple[int, int | None]]
    problem: str
    base: str
    broken: NotRequired[Mapping[str, str]]
    slow: NotRequired[Mapping[str, str]]


class ReloadReply(TypedDict):
    """Why the configuration was not reloaded; empty if it was."""

    problem: str


class JobReply(TypedDict):
    """That it was done for this job."""

    job: str
