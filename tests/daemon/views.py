"""Samples of a server for the tests of its metrics, and what can be read from the metrics again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from prometheus_client.parser import text_string_to_metric_families

from backy.model.revision import Consistency, Disk, Revision
from backy.monitoring import metrics
from backy.monitoring.metrics import Metrics, Sample
from backy.monitoring.space import Space
from backy.repository.status import Scrubbed, Status
from backy.repository.summary import Summary

NOW = datetime(2026, 11, 23, 9, 30, 0, 500_000, UTC)
IDS = ("20261121T004938Z-a1b2", "20261122T004938Z-a1b2", "20261123T004938Z-x7k2")
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Family:
    """A metric: its kind, what it says, and its values by name and labels."""

    kind: str
    text: str
    values: Mapping[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(frozen=True, slots=True)
class JobView:
    """A job, and by how much it misses what was promised."""

    summary: Summary
    overdue_seconds: float = 0
    scrub_overdue_seconds: float | None = None


def disk(size: int, read: int, changed: int, stored: int) -> Disk:
    return Disk(size, 4 << 20, "ab" * 32, read, changed, stored)


def busy_job(name: str = "vm1") -> JobView:
    """A job of which everything is known, with a different number for each thing."""
    time = datetime(2026, 11, 23, 0, 49, 38, tzinfo=UTC)
    disks = {"vda": disk(5000, 400, 300, 200), "vdb": disk(70000, 6000, 500, 40)}
    newest = Revision(IDS[-1], time, IDS[-2], 12.5, Consistency.CRASH, disks)
    status = Status(
        errors=2,
        failures=7,
        distrusted=IDS[:1],
        verified=NOW - timedelta(days=2),
        paused=NOW,
        scrubbed=Scrubbed(NOW - timedelta(days=1), 1000, 900, NOW - timedelta(days=31)),
    )
    return JobView(Summary(name, IDS, newest, status, reports=4), 60.5, 3600.0)


def new_job(name: str = "new") -> JobView:
    """A job that was never backed up; its repository does not exist."""
    return JobView(Summary(name))


SPACE = Space(10**12, 250 * 10**9, inodes=Space(10**7, 9 * 10**6))


def view(
    *jobs: JobView,
    space: Space | None = SPACE,
    problem: str = "",
) -> Iterable[Sample]:
    for job in jobs:
        yield metrics.of_job(job.summary, job.overdue_seconds, job.scrub_overdue_seconds, NOW)
    yield metrics.of_pool("fast", {"slots": 4, "in_use": 3, "queued": 7})
    yield metrics.of_pool("slow", {"slots": 2, "in_use": 1, "queued": 0})
    yield from metrics.of_server(space, problem, NOW - timedelta(hours=1))


def failing(job: JobView, errors: int) -> JobView:
    status = replace(job.summary.status, errors=errors)
    return replace(job, summary=replace(job.summary, status=status))


def families(text: bytes) -> dict[str, Family]:
    """Read the text format, with a parser that is not ours."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for sample in family.samples
        }
        assert len(values) == len(family.samples), f"{family.name} says something twice"
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name not in found, f"the lines of {name} do not stand together"
        found[name] = Family(family.type, family.documentation, values)
    return found


def of_job(text: bytes, name: str) -> dict[str, float]:
    """All that is said of a job."""
    labels = frozenset({("name", name)})
    return {
        metric: value
        for family in families(text).values()
        for (metric, its), value in family.values.items()
        if its == labels
    }


def exported() -> dict[str, Family]:
    """Every metric that backy has."""
    told = Metrics(lambda: view(busy_job()))
    told.observe_wait(1)
    return families(told.text())
