"""A line of the log has what its reader needs: a person, the journal, a program."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from backy.daemon.log import open_log
from tests.cli.runner import Backy, environment


def journal() -> str:
    """How systemd says that what is standard error now is its journal."""
    found = os.fstat(2)
    return f"{found.st_dev}:{found.st_ino}"


def logged(monkeypatch: pytest.MonkeyPatch, *, as_json: bool, journal: str = "") -> list[str]:
    """The lines for a backup that ended and for a bug."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("JOURNAL_STREAM", journal)
    log = open_log(as_json=as_json).bind(job="vm1")
    log.info("finished", seconds=1.5)
    try:
        int("ours")
    except ValueError:
        log.exception("a bug")
    return stream.getvalue().splitlines()


def test_a_person_sees_event_job_level_and_time_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished, bug = logged(monkeypatch, as_json=False)
    time = r"timestamp='\d{4}-\d\d-\d\dT[0-9:.]+Z'"
    assert re.fullmatch(f"event='finished' job='vm1' seconds=1.5 level='info' {time}", finished)
    assert "level='error'" in bug
    assert "ValueError: invalid literal" in bug


def test_the_journal_gets_the_level_as_its_prefix_and_adds_the_time_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So `journalctl -u backy -p warning` shows what went wrong, and nothing else."""
    finished, bug = logged(monkeypatch, as_json=False, journal=journal())
    assert finished == "<6>event='finished' job='vm1' seconds=1.5"
    assert bug.startswith("<3>event='a bug' job='vm1' exception=")


@pytest.mark.parametrize("journal", ["", "8:12345"])
def test_a_program_gets_an_object_for_each_event(
    monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    finished, bug = map(json.loads, logged(monkeypatch, as_json=True, journal=journal))
    assert (finished["event"], finished["level"], finished["seconds"]) == ("finished", "info", 1.5)
    assert (bug["event"], bug["level"]) == ("a bug", "error")
    assert finished["timestamp"]


def test_json_in_the_journal_has_the_level_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal takes the prefix away."""
    finished, bug = logged(monkeypatch, as_json=True, journal=journal())
    assert (finished[:3], bug[:3]) == ("<6>", "<3>")
    assert json.loads(bug[3:])["level"] == "error"


def test_a_file_that_is_not_the_journal_gets_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though systemd started us: standard error may have been sent elsewhere."""
    finished, _ = logged(monkeypatch, as_json=False, journal="8:12345")
    assert finished.startswith("event='finished'")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_errors_of_a_command_that_systemd_started_have_their_level(
    tmp_path: Path, options: list[str]
) -> None:
    """A timer that calls backy backup, and the daemon that cannot start."""
    with (tmp_path / "journal").open("w+") as stderr:
        found = os.fstat(stderr.fileno())
        journal = f"{found.st_dev}:{found.st_ino}"
        command = Backy(tmp_path / "base").command("backup", "vm1", *options)
        env = environment(JOURNAL_STREAM=journal)
        assert subprocess.run(command, check=False, stderr=stderr, env=env).returncode == 9
    lines = (tmp_path / "journal").read_text().splitlines()
    assert lines
    assert all(line.startswith("<3>") for line in lines)
