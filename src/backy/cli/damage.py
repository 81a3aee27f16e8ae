"""How verify and scrub report damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from backy.cli.output import format_rate
from backy.cli.progress import Meter
from backy.errors import DamagedError
from backy.model.messages import DamageEvent
from backy.units import counted, format_size

if TYPE_CHECKING:
    from backy.operations.heal import Damage
    from backy.operations.verify import Findings


def damage_shown(job: str, shown: Meter) -> Callable[[Damage], None]:
    """A function that reports a damaged range to the user at once."""

    def show(damage: Damage) -> None:
        end = damage.start + damage.length
        where = f"{damage.revision} {damage.disk} bytes {damage.start} to {end}"
        what = f"healed from {damage.healed}" if damage.healed else "damaged"
        event = DamageEvent(
            event="damage",
            job=job,
            revision=damage.revision,
            disk=damage.disk,
            start=damage.start,
            length=damage.length,
            reason=damage.reason,
            healed=damage.healed,
        )
        shown.warn(f"{what}: {where}: {damage.reason}", event)

    return show


def ending(findings: Findings, read: int, seconds: float) -> str:
    """The end of the last line: pages that were read, healed ranges, the time and the rate."""
    healed = counted(findings.healed, "damaged range")
    note = f", {healed} healed" if findings.healed else ""
    pages = f", {format_size(findings.pages)} of indexes and pages" if findings.pages else ""
    return f"{pages}{note}, {seconds:.1f} s, {format_rate(read, seconds)}"


def raise_damaged(job: str, findings: Findings, revisions: int) -> None:
    """Raise DamagedError if ranges stay damaged."""
    if findings.lost:
        hints = [
            *findings.unasked,
            f"Run backy backup {job}: it stores again the blocks that the source still has",
            f"backy reports {job} lists the damage.",
        ]
        ranges = counted(findings.lost, "damaged range")
        message = f"{job}: {ranges} in {counted(revisions, 'revision')}"
        raise DamagedError(message, ". ".join(hints))
