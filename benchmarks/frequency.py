"""The row `frequency`: what a job costs whose history is long, and a daemon with very many jobs.

- A job with a backup every minute has 5 or 5,000 revisions of a disk of 64 MiB, in which a block
  changes. The revisions are copies of the first one with other times. Backups are made in turn, as
  the daemon makes them; then a daemon runs each of the two for some minutes, which also counts how
  it looks at the history afterwards.
- `list` of the long one.
- A daemon with 10,000 jobs of 5 revisions, none of which is due: its start, its rest, and `check`
  beside it.

All figures are CPU time, of user and system, with that of the programs that were started.
"""

import json
import os
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

from benchmarks.measure import output_of
from benchmarks.ours import JOB
from benchmarks.space import MIB
from benchmarks.trial import Command, Trial

FEW, MANY = 5, 5000
DISK_BYTES = 64 * MIB
RUNS, MINUTES = 7, 5
JOBS = 10_000
START_SECONDS, REST_SECONDS = 90, 120
# What was promised: the figure, its limit, its unit, and what a unit is.
LIMITS = {
    "5,000 revisions: CPU of a backup, of that with 5": (1.2, "", 1),
    "5,000 revisions: CPU of a daemon's minute, of that with 5": (1.2, "", 1),
    "5,000 revisions: CPU of list": (0.5, "s", 1),
    "10,000 jobs: CPU of the daemon's start": (10, "s", 1),
    "10,000 jobs: CPU of the daemon at rest": (0.01, "of a core", 1),
    "10,000 jobs: memory of the daemon": (400, "MiB", MIB),
    "10,000 jobs of 5 revisions: CPU of check": (2, "s", 1),
}


def frequency(trial: Trial) -> None:
    """All of it, in the order of the limits."""
    backup, minute = "5,000 revisions: CPU of a backup, of that with 5", dict[int, float]()
    configs = {count: _often(trial, count) for count in (FEW, MANY)}
    costs: dict[int, list[float]] = {FEW: [], MANY: []}
    for number in range(RUNS):
        for count, config in configs.items():
            _change(config.parent / "disk.img", number)
            backy: list[str | Path] = [trial.settings.backy, "--config", config]
            command = Command([*backy, "backup", JOB, "--tag", "minutely"])
            costs[count].append(trial.time(f"{count}: backup", command).cpu_seconds)
    trial.figure(backup, median(costs[MANY]) / median(costs[FEW]))
    for count, config in configs.items():
        minute[count] = _a_minute(trial, config)
        trial.say(f"{count} revisions: a minute of the daemon takes {minute[count]:.2f} s of CPU")
    trial.figure(
        "5,000 revisions: CPU of a daemon's minute, of that with 5", minute[MANY] / minute[FEW]
    )
    command = Command([trial.settings.backy, "--config", configs[MANY], "list", JOB])
    lists = [trial.time("list", command, sync=False).cpu_seconds for _ in range(RUNS)]
    trial.figure("5,000 revisions: CPU of list", median(lists))
    _rest(trial)


def _often(trial: Trial, count: int) -> Path:
    """A job with so many revisions, a minute apart; its configuration."""
    folder = trial.folder / f"often{count}"
    folder.mkdir()
    (folder / "disk.img").write_bytes(os.urandom(DISK_BYTES))
    intervals = {"minutely": {"interval": "1m", "keep": count}}
    config = _configured(folder, intervals, {JOB: folder / "disk.img"})
    _backup(trial, config)
    _copy_first(folder / "base" / JOB, count, timedelta(minutes=1))
    return config


def _backup(trial: Trial, config: Path) -> None:
    command = [trial.settings.backy, "--config", config, "backup", JOB, "--store", "chunks"]
    output_of([str(word) for word in command])


def _configured(
    folder: Path, intervals: dict[str, dict[str, object]], disks: dict[str, Path]
) -> Path:
    document = {
        "global": {"base-dir": str(folder / "base"), "socket": str(folder / "socket")},
        "schedules": {"often": intervals},
        "defaults": {"schedule": "often", "scrub": False},
        "jobs": {
            job: {"source": {"type": "file", "filename": str(disk)}} for job, disk in disks.items()
        },
    }
    path = folder / "backy.yaml"
    path.write_text(json.dumps(document, indent=1))  # JSON is YAML
    return path


def _copy_first(repository: Path, count: int, interval: timedelta) -> None:
    """Add older revisions, so that there are so many."""
    [first] = (repository / "revisions").iterdir()
    record = json.loads((first / "revision.json").read_text())
    newest = datetime.now(UTC) - timedelta(minutes=1)
    for number in range(count - 1):
        at = newest - number * interval
        copy = first.with_name(f"{at:%Y%m%dT%H%M%SZ}-copy")
        shutil.copytree(first, copy)
        changed = {"id": copy.name, "time": f"{at:%Y-%m-%dT%H:%M:%SZ}", "parent": None}
        (copy / "revision.json").write_text(json.dumps(record | changed))


def _change(disk: Path, number: int) -> None:
    with disk.open("r+b") as file:
        file.seek(number * MIB)
        file.write(os.urandom(512))


def _cpu_seconds(process: int, *, with_children: bool = True) -> float:
    """What a process and the children that it has waited for have used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    used = fields[11 : 15 if with_children else 13]
    return sum(map(int, used)) / os.sysconf("SC_CLK_TCK")


def _a_minute(trial: Trial, config: Path) -> float:
    """The mean of some minutes in which the daemon makes a backup in each."""
    daemon = _daemon(trial, config)
    try:
        time.sleep(15)
        before = _cpu_seconds(daemon.pid)
        for number in range(MINUTES):
            _change(config.parent / "disk.img", RUNS + number)
            time.sleep(60)
        return (_cpu_seconds(daemon.pid) - before) / MINUTES
    finally:
        _stop(daemon)


def _rest(trial: Trial) -> None:
    folder = trial.folder / "rest"
    folder.mkdir()
    (folder / "disk.img").write_bytes(bytes(MIB))
    jobs = [JOB, *(f"vm{number}" for number in range(2, JOBS + 1))]
    # So long that nothing is due meanwhile.
    intervals: dict[str, dict[str, object]] = {"yearly": {"interval": "365d", "keep": 9}}
    config = _configured(folder, intervals, dict.fromkeys(jobs, folder / "disk.img"))
    _backup(trial, config)
    _copy_first(folder / "base" / JOB, FEW, timedelta(days=1))
    for job in jobs[1:]:
        shutil.copytree(folder / "base" / JOB, folder / "base" / job)
    daemon = _daemon(trial, config)
    try:
        time.sleep(START_SECONDS)
        started = _cpu_seconds(daemon.pid, with_children=False)
        trial.figure("10,000 jobs: CPU of the daemon's start", started)
        time.sleep(REST_SECONDS)
        rest = (_cpu_seconds(daemon.pid, with_children=False) - started) / REST_SECONDS
        trial.figure("10,000 jobs: CPU of the daemon at rest", rest)
        status = Path(f"/proc/{daemon.pid}/status").read_text()
        [peak] = (line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))
        trial.figure("10,000 jobs: memory of the daemon", int(peak) * 1024)
        command = Command([trial.settings.backy, "--config", config, "check"])
        checks = [trial.time("check", command, sync=False).cpu_seconds for _ in range(RUNS)]
        trial.figure("10,000 jobs of 5 revisions: CPU of check", median(checks))
    finally:
        _stop(daemon)


def _daemon(trial: Trial, config: Path) -> subprocess.Popen[bytes]:
    command = [str(trial.settings.backy), "--config", str(config), "daemon"]
    with (config.parent / "daemon.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    daemon.wait()
