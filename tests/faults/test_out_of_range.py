"""Numbers and times that no command writes are refused where a record is read, and stop one job.

Each field of each record gets each impossible value. Nothing may take it for a value, crash
because of it, or print something that is not JSON.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from backy.config.loader import load
from backy.daemon.observe import observe
from backy.daemon.planner import Planner
from backy.daemon.state import DaemonState, Setup, overviews, samples
from backy.errors import BackyError
from backy.monitoring.metrics import Metrics
from backy.monitoring.space import space
from backy.operations.scrub_plan import Memory
from backy.repository import quarantine_reports
from backy.repository.manifest import read_revision, read_settings
from backy.repository.records import read_record
from backy.repository.repository import Repository
from backy.repository.restores import read_restores
from backy.repository.status import read_status
from backy.sources import open_source
from tests.cli.commands import COMMANDS
from tests.cli.runner import Result
from tests.daemon.machine import Server
from tests.daemon.views import families

IS_LONG = "BACKY_ALL_CALLS" in os.environ
NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400", "-1", "-0.5", f"{10**30}", f"{10**400}"]
TIMES = ['"0001-01-01T00:00:00Z"', '"9999-12-31T23:59:59Z"', '"1969-12-31T23:59:59Z"']
Place = tuple[str | int, ...]
JOBS = ["vm1", "vm2"]
SPACE = ".backy/space.json"


@dataclass(frozen=True)
class Case:
    """One field of one record, and an impossible value for it."""

    file: str
    place: Place
    value: str

    @contextmanager
    def spoils(self, base: Path) -> Iterator[Path]:
        """The value is in its place during the body."""
        path = max(base.glob(self.file))
        good = path.read_text()
        record: Any = json.loads(good)
        inner = record
        for key in self.place[:-1]:
            inner = inner[key]
        inner[self.place[-1]] = "@value@"
        path.write_text(json.dumps(record).replace('"@value@"', self.value))
        yield path
        if path.exists():
            path.write_text(good)


FILES: dict[str, Callable[[Path], object]] = {
    "vm1/repository.json": read_settings,
    "vm1/revisions/*/revision.json": read_revision,
    "vm1/status.json": lambda path: read_status(path.parent),
    "vm1/scrub.json": lambda path: read_record(path, Memory, BackyError, ""),
    "vm1/restores.json": lambda path: read_restores(Repository(path.parent).root),
    "vm1/quarantine/*/report.json": lambda path: quarantine_reports.find(
        Repository(path.parents[2]), path.parent.name
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Two jobs; vm1 has every record, with a value in every field."""
    made = Server(tmp_path_factory.mktemp("range"))
    source = made.job("vm1", b"disk" * 50_000, block_size="64KiB", scrub=True)
    made.job("vm2")
    made.ok("backup", "vm2")
    made.ok("backup", "vm1")
    source.write_bytes(b"new" * 70_000)
    made.ok("backup", "vm1", "--tag", "daily")
    made.chunk("vm1", made.revisions("vm1")[-1], 1).write_bytes(b"bad")
    made.run("verify", "vm1")
    made.ok("scrub", "vm1")
    made.ok("restore", "vm1", made.folder / "first.img", "-r", "first")
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    more = dict.fromkeys(("failed", "lied", "paused", "verified"), now)
    fill(made, "vm1/status.json", more | {"distrusted": made.revisions("vm1")[:1]})
    damaged = {"vda": [[0, 65536]]}
    fill(made, "vm1/revisions/*/revision.json", {"verified": now, "damaged": damaged})
    samples_ = [[f"{datetime.now(UTC) - timedelta(hours=2):%Y-%m-%dT%H:%M:%SZ}", 1000]]
    (made.base / ".backy").mkdir()
    content = json.dumps({"format": 1, "samples": samples_})
    (made.base / ".backy" / "space.json").write_text(content)
    return made


def fill(server: Server, pattern: str, more: dict[str, object]) -> None:
    path = max(server.base.glob(pattern))
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


@pytest.fixture
def spoilt(server: Server, tmp_path: Path) -> Server:
    """The same again, to be spoilt."""
    return copied(server, tmp_path / "copy")


def copied(server: Server, folder: Path) -> Server:
    folder.mkdir()
    copy = Server(folder)
    shutil.copytree(server.base, copy.base)
    shutil.copytree(server.folder / "jobs.d", copy.folder / "jobs.d", dirs_exist_ok=True)
    return copy


def leaves(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:  # noqa: ANN401 - JSON
    """Each field that is no list and no object; of a list the first."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*place, key))
    elif isinstance(value, list):
        for inner in value[:1]:
            yield from leaves(inner, (*place, 0))
    else:
        yield place, value


def is_time(value: object) -> bool:
    try:
        return bool(datetime.fromisoformat(str(value)).tzinfo)
    except ValueError:
        return False


def cases(base: Path, file: str) -> Iterator[Case]:
    record = json.loads(max(base.glob(file)).read_text())
    for place, value in leaves(record):
        assert value is not None, f"{file}: {place} has no value to spoil"
        is_number = isinstance(value, (int, float)) and place != ("format",)
        for bad in NUMBERS if is_number else TIMES if is_time(value) else ():
            yield Case(file, place, bad)


@pytest.mark.parametrize("file", FILES)
def test_an_impossible_value_in_any_field_is_refused_with_its_name(
    server: Server, spoilt: Server, file: str
) -> None:
    visited = list(cases(server.base, file))
    assert len(visited) > 10
    for case in visited:
        with case.spoils(spoilt.base) as path:
            with pytest.raises(BackyError) as caught:
                FILES[file](path)
            name = [str(key) for key in case.place if isinstance(key, str)][-1]
            assert name in caught.value.message, case
            assert len(caught.value.message) < 1000


def test_a_name_of_any_length_is_not_quoted_whole(spoilt: Server) -> None:
    path = max(spoilt.base.glob("vm1/revisions/*/revision.json"))
    record = json.loads(path.read_text())
    record["disks"]["x" * 500_000] = record["disks"]["vda"] | {"read": -1}
    path.write_text(json.dumps(record))
    with pytest.raises(BackyError, match=r"disks\.xxx") as caught:
        read_revision(path)
    assert len(caught.value.message) < 1000


def test_free_space_that_cannot_be_makes_no_trend(server: Server, spoilt: Server) -> None:
    assert space(spoilt.base).samples
    for case in cases(server.base, SPACE):
        with case.spoils(spoilt.base):
            assert not space(spoilt.base).samples, case


@pytest.mark.parametrize("file", [*FILES, SPACE])
def test_no_impossible_value_stops_what_judges_all_jobs(
    server: Server, spoilt: Server, file: str
) -> None:
    """The daemon's look and plan, its status and its metrics."""
    now = datetime.now(UTC)
    config = load(spoilt.path, open_source).config
    state = DaemonState(Setup(config, spoilt.base, now), Planner())
    state.planner.configure({job: (config.jobs[job], config.intervals(job)) for job in JOBS}, now)
    for case in cases(server.base, file):
        with case.spoils(spoilt.base):
            for job in JOBS:
                settings, schedule = config.jobs[job], config.intervals(job)
                seen, state.summaries[job] = observe(spoilt.base, job, settings, schedule, now)
                state.planner.update(job, seen, now)
            rows = list(overviews(state, now))
            json.dumps(rows, allow_nan=False)
            families(Metrics(lambda: samples(state)).text())
        assert [row["job"] for row in rows] == JOBS
        assert not any(map(state.fence.bug, JOBS)), case
        if file.endswith(("status.json", "revision.json")):
            assert path_name(case) in state.summaries["vm1"].problem
        assert not state.summaries["vm2"].problem


OF_ONE_JOB = (
    "backup", "expire", "list", "pause", "purge", "resume", "run", "undo", "verify",
)  # fmt: skip


def path_name(case: Case) -> str:
    return case.file.rpartition("/")[2]


def is_no_bug(result: Result, case: Case) -> None:
    """It ended as a command does, and what it printed for programs is JSON."""
    assert 0 <= result.code < 70, (case, result)
    for line in (result.out + result.err).splitlines():
        if line.startswith("{"):
            json.loads(line, parse_constant=pytest.fail)


def test_no_command_prints_or_stumbles_over_an_impossible_value(
    server: Server, tmp_path: Path
) -> None:
    """Each command with each field; each with all of the values in a long run."""
    newest = server.revisions("vm1")[-1]
    report = next((server.base / "vm1" / "quarantine").glob("2*")).name
    words: dict[str, list[str]] = {
        "diff": ["vm1", "2..1"],
        "find": ["vm1"],
        "remove": ["vm1", "-r", newest],
        "reports delete": ["vm1", report],
        "reports show": ["vm1", report],
        "restore": ["vm1", str(tmp_path / "restored")],
        "tag": ["vm1", "tag"],
        **{name: ["vm1"] for name in OF_ONE_JOB},
    }
    runs = 0
    for number, case in enumerate(sampled(server.base)):
        copy = copied(server, tmp_path / str(number))
        with case.spoils(copy.base):
            # This one first: it changes nothing, and judges both jobs.
            judged = copy.run("check")
            is_no_bug(judged, case)
            assert "a bug" not in judged.out, case
            for name in chosen(number):
                is_no_bug(copy.run(*name.split(), *words.get(name, []), "--json"), case)
                runs += 1
        shutil.rmtree(copy.folder)
    assert runs > 60


def chosen(number: int) -> list[str]:
    """The commands for a case: all of them in a long run, else some in turn."""
    names = [
        name
        for name, command in COMMANDS.items()
        if any("--json" in each.opts for each in command.params) and name != "config check"
    ]
    return names if IS_LONG else names[number % 9 :: 9]


def sampled(base: Path) -> Iterator[Case]:
    """Each field, with one of its values in turn, or with all of them in a long run."""
    for file in [*FILES, SPACE]:
        every = list(cases(base, file))
        places = dict.fromkeys(case.place for case in every)
        for number, place in enumerate(places):
            bad = [case for case in every if case.place == place]
            yield from bad if IS_LONG else [bad[number % len(bad)]]
