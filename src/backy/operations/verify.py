"""Verify: read every stored byte again, past the page cache, and report damage.

Each GiB of a disk is read in all revisions at once, so that bytes that they share are read only
once; see survey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from backy.errors import BusyError, DamagedError, NotFoundError, StoreError
from backy.image.progress import SILENCE, Watcher
from backy.model.revision import Revision, Trust
from backy.model.selector import select
from backy.operations.heal import Damage, Healer, distrusted, healing
from backy.operations.origin import Origin, failures
from backy.operations.site import Site
from backy.operations.survey import Range, Survey, check_pages, largest, opened
from backy.repository.repository import Repository
from backy.repository.script import renew_script


@dataclass(slots=True)
class Findings:
    """What verify or scrub found.

    `damages` are the damaged ranges, healed or not. `unreadable` says by revision id why a
    revision.json cannot be read. `unasked` has a sentence for each origin of good bytes that could
    not be asked, with the reason. `pages` counts the bytes of indexes and pages that were read, in
    all their copies.
    """

    damages: list[Damage] = field(default_factory=list)
    unreadable: Mapping[str, DamagedError] = field(default_factory=dict)
    unasked: Sequence[str] = ()
    pages: int = 0

    @property
    def lost(self) -> int:
        """How many ranges are still damaged; a revision that cannot be read counts as one."""
        return sum(not damage.healed for damage in self.damages) + len(self.unreadable)

    @property
    def healed(self) -> int:
        """How many ranges were healed."""
        return sum(bool(damage.healed) for damage in self.damages)


@dataclass(slots=True)
class VerifyResult(Findings):
    """What verify found, and the `revisions` that it read, oldest first."""

    revisions: Sequence[Revision] = ()

    @property
    def size(self) -> int:
        """The bytes of all disks of the revisions."""
        return _size(self.revisions)


def _size(revisions: Sequence[Revision]) -> int:
    return sum(disk.size for revision in revisions for disk in revision.disks.values())


def verify_job(
    site: Site,
    job: str,
    spec: str = "all",
    *,
    watcher: Watcher = SILENCE,
    on_damage: Callable[[Damage], None] = lambda _: None,
) -> VerifyResult:
    """Verify the revisions of a job that `spec` names.

    `on_damage` is called at once for each damaged range. Raises NotFoundError if `spec` names no
    revision, and what `verify` raises.
    """
    repository = site.repository(job)
    history = repository.history()
    revisions = sorted(select(spec, history.revisions), key=lambda revision: revision.id)
    if not revisions and not history.unreadable:
        raise NotFoundError(f"{job}: {spec!r} names no revision", f"backy list {job}")
    result = VerifyResult(
        revisions=revisions, unreadable=history.unreadable if spec == "all" else {}
    )
    for text in history.problems:
        watcher.warn(text)
    origins = site.origins(repository)
    for damage in verify(repository, revisions, origins=origins, watcher=watcher):
        result.damages.append(damage)
        on_damage(damage)
    result.unasked = failures(origins)
    result.pages = repository.store.pages.checked
    return result


def verify(
    repository: Repository,
    revisions: Sequence[Revision],
    *,
    origins: Sequence[Origin],
    watcher: Watcher = SILENCE,
) -> Iterator[Damage]:
    """Read all blocks of `revisions` (oldest first), heal bad ones, and yield all damage found.

    Good bytes come from other revisions and `origins`. Damage is reported for every revision that
    has it, also for those not in `revisions`. At the end each of `revisions` becomes verified or
    distrusted; none becomes verified if some damage could not be recorded. `watcher` is warned if
    that cannot be recorded, as in a repository that is read-only or full.
    """
    watcher.begin(_size(revisions))
    lost: dict[str, list[Damage]] = {}
    seen: set[bytes] = set()
    check_script(repository, watcher)
    with healing(repository, "verify", origins, watcher) as healer:
        for name in sorted({name for revision in revisions for name in revision.disks}):
            for damage in _verify_disk(revisions, name, seen, healer):
                if not damage.healed:
                    lost.setdefault(damage.revision, []).append(damage)
                yield damage
    try:
        for revision in revisions:
            if revision.id in lost or not healer.is_unrecorded:
                _record(repository, revision, lost.get(revision.id, ()))
    except (BusyError, DamagedError):  # it can be recorded later, or is revision.json's own
        raise
    except StoreError as error:
        watcher.warn(f"the result is not recorded: {error.message}")


def check_script(repository: Repository, watcher: Watcher) -> None:
    """Replace restore.sh if it differs from this version's, and warn of that."""
    try:
        if renew_script(repository):
            watcher.warn("restore.sh differed from this version's and was replaced")
    except StoreError as error:
        watcher.warn(f"restore.sh differs from this version's: {error.message}")


def _record(repository: Repository, revision: Revision, lost: Sequence[Damage]) -> None:
    """Write the result to revision.json, unless the revision was removed meanwhile."""
    now = datetime.now(UTC).replace(microsecond=0)

    def verified(revision: Revision) -> Revision:
        # After a tracking error no range is known to be damaged, and good hashes prove nothing: the
        # revision stays distrusted.
        is_doubted = revision.trust is Trust.DISTRUSTED and not revision.damaged
        trust = Trust.DISTRUSTED if is_doubted else Trust.VERIFIED
        revision = replace(revision, trust=trust, damaged={}, verified=now)
        return distrusted(revision, lost) if lost else revision

    with suppress(NotFoundError):
        repository.change(revision, verified)


def _verify_disk(
    revisions: Sequence[Revision], name: str, seen: set[bytes], healer: Healer
) -> Iterator[Damage]:
    with opened(healer.repository, revisions, name) as (holders, damages):
        healer.distrust(damages)
        for damage in damages:
            healer.watcher.advance(damage.length)
            yield damage
        for where in Range(name, 0, largest(holders)).cut():
            yield from check_pages(holders, where, healer)
            yield from healer.heal(Survey(where, holders, seen, ()).read(healer.watcher))
