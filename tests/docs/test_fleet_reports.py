"""The scripts of docs/fleet.md that report to auditors, and that tell people."""

import csv
import json
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.docs import markdown
from tests.docs.fleet import Fleet
from tests.lab.needs import absent, need


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    need(absent("jq", "curl"))
    made = Fleet(tmp_path / "fleet")
    made.make()
    yield made
    made.power_cut()


def month(fleet: Fleet, which: str) -> dict[str, dict[str, str]]:
    """The rows of the report, by job."""
    done = fleet.run("fleet-month", which, fleet.mass / "ledger.csv")
    assert done.returncode == 0, done.stderr
    return {row["job"]: row for row in csv.DictReader(done.stdout.splitlines())}


def configure(fleet: Fleet, *jobs: str) -> None:
    source = {"type": "file", "disks": {"vda": "/dev/null"}}
    configuration = {
        "global": {"base-dir": str(fleet.backy.base), "daemon": False},
        "schedules": {"default": {"daily": {"interval": "1d", "keep": 9}}},
        "jobs": {job: {"schedule": "default", "source": source} for job in jobs},
    }
    (fleet.root / "backy.yaml").write_text(json.dumps(configuration))


def test_the_report_of_a_month_has_gaps_and_jobs_without_any_backup(fleet: Fleet) -> None:
    many = [f"{number:0120}" for number in range(1200)]  # more than one argument of a program holds
    configure(fleet, "vm1", "vm2", "never", *many)
    days = {"vm1": (1, 2, 5), "vm2": (-40, 30), "removed": (3,)}
    start = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with (fleet.mass / "ledger.csv").open("w") as ledger:
        for job, offsets in days.items():
            for day in offsets:
                time = f"{start + timedelta(days=day - 1):%Y-%m-%dT%H:%M:%SZ}"
                ledger.write(f'"{job}","{job}{day}","{time}",1000,10\n')
    rows = month(fleet, "2026-01")
    assert set(rows) == {"vm1", "vm2", "never", "removed", *many}
    assert rows["vm1"]["last_success"] == "2026-01-05T12:00:00Z"
    assert rows["vm1"]["revisions"] == "3"
    assert rows["vm1"]["stored_bytes"] == "30"
    assert float(rows["vm1"]["longest_gap_hours"]) == 26 * 24 + 12  # to the end of the month
    assert float(rows["vm2"]["longest_gap_hours"]) == 70 * 24  # from November
    assert rows["never"]["last_success"] == "never"
    assert float(rows["never"]["longest_gap_hours"]) == 31 * 24
    assert [rows[job]["configured"] for job in ("vm1", "removed")] == ["yes", "no"]


def test_the_ledger_keeps_what_expired_and_has_nothing_twice(fleet: Fleet) -> None:
    configure(fleet, "vm1")
    ledger = fleet.mass / "ledger.csv"
    fleet.add("vm1")
    assert fleet.run("fleet-ledger", ledger).returncode == 0
    fleet.add("vm1")
    assert fleet.run("fleet-ledger", ledger).returncode == 0
    fleet.backy.ok("remove", "vm1", "-r", "first")
    assert fleet.run("fleet-ledger", ledger).returncode == 0
    assert len(ledger.read_text().splitlines()) == 2
    assert month(fleet, f"{datetime.now(UTC):%Y-%m}")["vm1"]["revisions"] == "2"
    (fleet.backy.base / "vm1" / "repository.json").write_text("{")
    assert fleet.run("fleet-ledger", ledger).returncode != 0
    assert len(ledger.read_text().splitlines()) == 2
    assert sorted(path.name for path in fleet.mass.iterdir()) == ["ledger.csv"]


class DeadMan:
    """A web server on loopback that counts what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.code = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                self.send_response(outer.code)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/ping"


@pytest.fixture
def dead_man() -> Iterator[DeadMan]:
    made = DeadMan()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_people_get_a_mail_at_each_change_and_the_ping_shows_that_they_could(
    fleet: Fleet, dead_man: DeadMan
) -> None:
    program = fleet.root / "bin" / "sendmail"
    program.write_text(
        f'#!/bin/sh\n[ ! -e {fleet.root}/down ] && cat >>{fleet.root}/"mails to $3"\n'
    )
    program.chmod(0o755)
    mails = fleet.root / "mails to ops@example.com"
    env = {"STATE_DIRECTORY": str(fleet.root), "LIMIT": "30"}

    def tell(*check: str) -> int:
        command = ("fleet-tell", "ops@example.com", dead_man.url, *check)
        return fleet.run(*command, env=env).returncode

    def exits(code: int) -> int:
        (fleet.root / "code").write_text(str(code))
        return tell("sh", "-c", f'echo "vm1 | odd"; exit $(cat {fleet.root}/code)')

    assert exits(0) == 0
    assert not mails.exists()
    assert exits(2) == 0
    assert exits(2) == 0
    assert mails.read_text().count("Subject: sh: exit code 2 on ") == 1
    assert "\n\nvm1 | odd\n" in mails.read_text()
    assert len(dead_man.asked) == 3
    (fleet.root / "down").touch()  # a mail that nobody takes is tried again, and silence tells
    assert exits(0) == 1
    assert len(dead_man.asked) == 3
    (fleet.root / "down").unlink()
    assert exits(0) == 0
    assert mails.read_text().count("Subject: sh: exit code 0 on ") == 1
    dead_man.code = 404
    assert exits(0) == 22
    dead_man.code = 200
    assert tell("no-such-program") == 0
    assert mails.read_text().count("Subject: no-such-program: exit code 127 on ") == 1
    env["LIMIT"] = "0.2"
    assert tell("sleep", "60") == 0
    assert mails.read_text().count("Subject: sleep: exit code 124 on ") == 1
    env["LIMIT"] = "60"
    configure(fleet, "vm1")
    fleet.backy.ok("init")
    assert tell("backy", "check") == 0
    assert "CRITICAL vm1: never backed up" in mails.read_text()


def test_the_units_of_the_page_are_valid(fleet: Fleet) -> None:
    need(absent("systemd-analyze"))
    text = (markdown.PROJECT / "docs" / "fleet.md").read_text()
    units = [each.text for each in markdown.blocks(text) if each.text.startswith("# /etc/systemd")]
    paths: list[str | Path] = []
    for unit in units:
        path = fleet.root / Path(unit.splitlines()[0].removeprefix("# ")).name
        path.write_text(unit.replace("/usr/local/sbin", f"{fleet.root}/bin"))
        paths.append(path)
    assert len(paths) == 2
    done = subprocess.run(
        ["systemd-analyze", "verify", *paths], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
