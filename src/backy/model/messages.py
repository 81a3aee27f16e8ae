"""The types of the JSON objects that backy prints for programs, or sends over the daemon's socket.

A message is a plain dict whose keys one of these types names: mypy finds a key that is missing or
misspelt, and nothing is converted at run time. Here are records and the events of commands that
take long; backy.model.answers has the rest.

tools/make_schemas.py writes docs/schemas/ from these types. A docstring has the description of the
object and, after a blank line, those of its keys; some types bring their own.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Literal, NotRequired, TypedDict

from backy import errors
from backy.errors import BUG, BackyError, StoreError

ERRORS = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, BackyError)
}

_EXIT_CODES = tuple(sorted({BUG, *(kind.exit_code for kind in ERRORS.values())}))
_TIME = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$"
_DISK = "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_ABOUT_DISK = "The name of the disk, such as vda."
_ABOUT_RANGE = "Start and length of a range, in bytes; whole blocks."
# A type, and what its JSON Schema has beside it.
Text = Annotated[str, ("minLength", 1)]
Time = Annotated[str, ("format", "date-time"), ("pattern", _TIME)]
Tag = Annotated[str, ("minLength", 1), ("maxLength", 64)]
ImageFormat = Annotated[str, ("pattern", "^[A-Za-z0-9_.-]{0,64}$")]
Hash = Annotated[str, ("pattern", "^[0-9a-f]{64}$")]
Bytes = Annotated[int, ("minimum", 0)]
Count = Annotated[int, ("minimum", 0)]
Seconds = Annotated[float, ("minimum", 0)]
BlockSize = Annotated[int, ("minimum", 64 << 10), ("maximum", 16 << 20), ("multipleOf", 64 << 10)]
JobName = Annotated[str, ("minLength", 1), ("description", "The name of the job.")]
DiskName = Annotated[str, ("pattern", _DISK), ("description", _ABOUT_DISK)]
RevisionId = Annotated[str, ("pattern", "^[0-9]{8}T[0-9]{6}Z-[a-z0-9]{4}$")]
RevisionIds = Annotated[Sequence[RevisionId], ("uniqueItems", True)]
Length = Annotated[int, ("minimum", 1)]
Range = Annotated[tuple[Bytes, Length], ("description", _ABOUT_RANGE)]
Ranges = Annotated[Sequence[Range], ("uniqueItems", True)]


class Message(TypedDict):
    """Any of the messages here and in backy.model.answers: mypy takes no other dict for one."""


# Records: descriptions of what is stored.


class DiskRecord(TypedDict):
    """One disk of the revision.

    size: The size of the disk, in bytes.
    block_size: The size of a block, in bytes; a multiple of 64 KiB.
    index_hash: The BLAKE3-256 of the disk's index, the file NAME.blocks.
    read: How much the backup read from the source, in bytes.
    changed: The blocks that differ from those of the parent, in bytes.
    stored: How much the backup wrote to the store, in bytes.
    compared: How much was read although the source reported it as unchanged, in bytes.
    whole: Why the disk was read in full instead of its changes; for people.
    read_back: How much was read from the medium again before it was published, in bytes.
    looked_up: How many blocks were looked up by the names of their chunks then.
    pages: How much the backup wrote for the index and its pages, in bytes.
    image_format: The format of the image that the disk was kept in, such as qcow2, as QEMU calls
      it; empty if the source does not know.
    """

    size: Length
    block_size: BlockSize
    index_hash: Hash
    read: Bytes
    changed: Bytes
    stored: Bytes
    compared: Bytes
    whole: str
    read_back: Bytes
    looked_up: Count
    pages: Bytes
    image_format: ImageFormat


class RevisionRecord(TypedDict):
    """One completed backup of all disks of a VM.

    format: 2 if the indexes of its disks list pages, 1 if they list blocks.
    id: Its name: the time in UTC and four random characters.
    time: When it was made, in UTC and whole seconds.
    parent: The id of the revision that it was compared with, or null.
    seconds: How long the backup took, in seconds.
    consistency: What a VM that boots from it finds. application and filesystem: it was prepared
      for the snapshot; crash: one point in time, as after a power cut; none: it was read while it
      may have been written to.
    disks: The disks by name.
    tags: Its tags.
    trust: trusted: its stored bytes were not read since; verified: they were, and are what was
      stored; distrusted: some are not, and could not be healed.
    verified: When verify last read all of it, in UTC, whatever the result; null if never.
    warnings: What the user should know about it.
    damaged: The damaged ranges of each disk that could not be healed when they were read last,
      ascending; the whole disk if there are too many.
    """

    format: Literal[1, 2]
    id: RevisionId
    time: Time
    parent: RevisionId | None
    seconds: Seconds
    consistency: Literal["application", "filesystem", "crash", "none"]
    disks: Annotated[Mapping[DiskName, DiskRecord], ("minProperties", 1)]
    tags: Annotated[Sequence[Tag], ("uniqueItems", True)]
    trust: Literal["trusted", "verified", "distrusted"]
    verified: Time | None
    warnings: Sequence[str]
    damaged: Mapping[DiskName, Ranges]


class OccurrenceRecord(TypedDict):
    """One range of a disk of a revision.

    revision: The revision.
    start: Where the range starts, in bytes.
    length: The length of the range, in bytes; whole blocks.
    """

    revision: RevisionId
    disk: DiskName
    start: Bytes
    length: Length


class ReportRecord(TypedDict):
    """One block that was found damaged, or one page of an index in both copies.

    id: Its name: the time in UTC and the first four digits of the hash.
    time: When the damage was found, in UTC and whole seconds.
    verb: The command that found it: verify, scrub or restore.
    digest: The BLAKE3-256 that the block or page should have.
    reason: What was wrong with the stored bytes; for people.
    revisions: The ids of all revisions that had the bad bytes, sorted.
    occurrences: Where in these revisions: the first 1,000 ranges.
    healed: Where good bytes came from; null if there were none.
    files: The paths of the bytes that are kept: stored, those in the store; source, those that the
      source had in the same place.
    """

    job: JobName
    id: RevisionId
    time: Time
    verb: Text
    digest: Hash
    reason: Text
    revisions: Annotated[RevisionIds, ("minItems", 1)]
    occurrences: Annotated[Sequence[OccurrenceRecord], ("minItems", 1), ("maxItems", 1000)]
    healed: Text | None
    files: Annotated[Sequence[Text], ("maxItems", 2), ("uniqueItems", True)]


# Events of a running command, one a line.


class ProgressEvent(TypedDict):
    """How far the command is; at most one a second.

    done: How much is done, in bytes.
    total: How much there is to do, in bytes.
    rate: The mean rate since the command began, in bytes a second.
    eta_seconds: The time left at that rate, in seconds; null if it is unknown.
    """

    event: Literal["progress"]
    done: Bytes
    total: Bytes
    rate: Bytes
    eta_seconds: Seconds | None


class WarningEvent(TypedDict):
    """Something that the user should know.

    message: A sentence for people.
    """

    event: Literal["warning"]
    message: Text


class NoteEvent(TypedDict):
    """The output of a hook, or that a hook failed.

    message: A line of the output, after the name of the hook.
    """

    event: Literal["note"]
    message: Text


class DamageEvent(TypedDict):
    """A range of a disk whose stored bytes were damaged; whole blocks.

    revision: The revision that has the range.
    start: Where the range starts, in bytes.
    length: The length of the range, in bytes.
    reason: What is wrong with the stored bytes; for people.
    healed: Where good bytes came from; null if there were none.
    """

    event: Literal["damage"]
    job: JobName
    revision: RevisionId
    disk: DiskName
    start: Bytes
    length: Length
    reason: Text
    healed: Text | None


class ErrorEvent(TypedDict):
    """What a command with --json prints on standard error, in one line, for an error.

    error: The kind of error.
    exit_code: The exit code of the command; each kind of error has one.
    message: What failed, on which object, and why; for people.
    hint: What to do next; for people.
    traceback: Only for a bug: where it happened.
    """

    event: Literal["error"]
    error: Annotated[str, ("enum", (*ERRORS, "Bug"))]
    exit_code: Annotated[int, ("enum", _EXIT_CODES)]
    message: Text
    hint: str
    traceback: NotRequired[Text]


class Finished(TypedDict):
    """The last event of a command."""

    event: Literal["finished"]
    job: JobName


class BackupFinished(Finished):
    """The revision was published.

    seconds: How long the command took, in seconds.
    """

    seconds: Seconds
    revision: RevisionRecord


class RestoreFinished(Finished):
    """The disk is restored. An error follows on standard error if some of it is lost.

    dry_run: Whether nothing was written.
    revision: The revision that was restored.
    target: The file or block device, as it was named.
    size: The size of the disk, in bytes.
    read: How much of it is data, in bytes.
    written: How much the target did not have, in bytes.
    seconds: How long it took, in seconds; in a dry run about how long it would take, at the rate of
      the job's last restores, or null.
    lost: The ranges that could not be restored; the target has zeroes there.
    healed: The ranges that were damaged and came from elsewhere; the target has the right bytes.
    """

    dry_run: bool
    revision: RevisionId
    disk: DiskName
    target: Text
    size: Bytes
    read: Bytes
    written: Bytes
    seconds: Seconds | None
    lost: Ranges
    healed: Ranges


class BootFinished(Finished):
    """The VM needs nothing of backy any more.

    revision: The revision that it was started from.
    disks: Where each of its disks is now: a qcow2 file, or the target that it moved to.
    shut_down: Whether its guest has shut down meanwhile; else it runs.
    agent_seconds: After how many seconds the guest agent answered; null if it did not until the
      end, and if the VM was running before.
    seconds: How long the command took, in seconds.
    """

    revision: RevisionId
    disks: Mapping[DiskName, Text]
    shut_down: bool
    agent_seconds: Seconds | None
    seconds: Seconds


class Checked(Finished):
    """The last event of verify or scrub."""

    damaged: Count
    healed: Count
    pages: Bytes
    seconds: Seconds


class VerifyFinished(Checked):
    """Everything was read; an error follows on standard error if damage was not healed.

    revisions: The ids of the revisions that were read, oldest first.
    damaged: How many damaged ranges were not healed, and how many revisions are unusable.
    healed: How many damaged ranges were healed.
    pages: How much was read of indexes and pages, in all copies, in bytes.
    size: The size of all disks that were verified, in bytes.
    seconds: How long the command took, in seconds.
    """

    revisions: RevisionIds
    size: Bytes


class ScrubFinished(Checked):
    """The scrub of one job ended; damage that was not healed is an error on standard error.

    read: How much data this run read, in bytes.
    damaged: How many damaged ranges were not healed, and how many revisions are unusable.
    healed: How many damaged ranges were healed.
    pages: How much it read of indexes and pages, in all copies, in bytes.
    total: How much there is to read, in bytes, each stored block once; before the first scrub, at
      least what the newest revision has.
    within: How much of it was read within the promised time, in bytes.
    oldest_seconds: How long ago the byte was read that waits longest, in seconds; null if nothing
      is stored.
    seconds: How long it took, in seconds.
    """

    read: Bytes
    total: Bytes
    within: Bytes
    oldest_seconds: Seconds | None


class ExpiredRevision(TypedDict):
    """One revision that changes.

    revision: Its id.
    drop: The tags that are dropped.
    keep: The tags that stay.
    removed: Whether the revision goes to the trash.
    why: The rule; for people.
    """

    revision: RevisionId
    drop: Sequence[str]
    keep: Sequence[str]
    removed: bool
    why: Text


class ExpireFinished(Finished):
    """What the schedule does not keep.

    dry_run: Whether nothing was changed.
    expired: The revisions that change, oldest first.
    """

    dry_run: bool
    expired: Sequence[ExpiredRevision]


def time_text(time: datetime) -> str:
    """A time as messages have it: in UTC and whole seconds."""
    return f"{time.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def error_event(error: BackyError) -> ErrorEvent:
    """The event for an error. A class of another module counts as its base in backy.errors."""
    name = next(kind.__name__ for kind in type(error).__mro__ if ERRORS.get(kind.__name__) is kind)
    return _error_event(name, error.exit_code, error.message, error.hint)


def bug_event(error: Exception, traceback: str) -> ErrorEvent:
    """The event for an exception that nobody expected."""
    why = f"{type(error).__name__}: {error}"
    event = _error_event("Bug", BUG, why, "Report it with the traceback.")
    return {**event, "traceback": traceback}


def _error_event(kind: str, code: int, message: str, hint: str) -> ErrorEvent:
    return ErrorEvent(event="error", error=kind, exit_code=code, message=message, hint=hint)


def error_from(event: Mapping[str, object]) -> BackyError:
    """The error that an event was made from; a StoreError if its kind is unknown here."""
    kind = ERRORS.get(str(event.get("error")), StoreError)
    return kind(str(event.get("message", "")), str(event.get("hint", "")))
