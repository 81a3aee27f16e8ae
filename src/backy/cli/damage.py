"""What verify and scrub say of damage."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from backy.cli.progress import Meter
from backy.errors import DamagedError
from backy.repository.repository import History
from backy.units import format_rate

if TYPE_CHECKING:
    from backy.operations.heal import Damage
    from backy.operations.origin import Origin


def show_damage(
    job: str, history: History, damages: Iterable[Damage], shown: Meter
) -> list[Damage]:
    """Name what cannot be read, and each damaged range as it is found."""
    for error in history.unreadable.values():
        shown.warn(error.message)
    found = []
    for damage in damages:
        found.append(damage)
        end = damage.start + damage.length
        where = f"{damage.revision} {damage.disk} bytes {damage.start} to {end}"
        what = f"healed from {damage.healed}" if damage.healed else "damaged"
        event = {"event": "damage", "job": job, **asdict(damage)}
        shown.warn(f"{what}: {where}: {damage.reason}", event)
    return found


def lost(found: list[Damage]) -> int:
    """How many of the ranges could not be healed."""
    return sum(not each.healed for each in found)


def ending(found: list[Damage], read: int, seconds: float) -> str:
    """What was healed, and the time and rate: the end of the last line."""
    healed = len(found) - lost(found)
    note = f", {healed} damaged ranges healed" if healed else ""
    return f"{note}, {seconds:.1f} s, {format_rate(read, seconds)}"


def raise_damaged(job: str, count: int, revisions: int, origins: Sequence[Origin]) -> None:
    """Raise DamagedError where `count` ranges stay damaged; it names `origins` that failed."""
    from backy.operations.origin import failures

    if count:
        hints = [
            *failures(origins),
            f"Run backy backup {job}: what the source still has is stored anew",
            "backy reports lists what was kept of it.",
        ]
        raise DamagedError(
            f"{job}: {count} damaged ranges in {revisions} revisions", ". ".join(hints)
        )
