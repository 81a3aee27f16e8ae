"""A line of the log has what its reader needs: a person, the journal, a program."""

from __future__ import annotations

import io
import json
import re
import sys

import pytest

from backy.daemon.log import open_log


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
    finished, bug = logged(monkeypatch, as_json=False, journal="8:12345")
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
