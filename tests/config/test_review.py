"""What is valid in a configuration, but hardly meant, is a warning with file and line."""

from pathlib import Path

import pytest

from backy.config.loader import load
from backy.config.review import warnings
from backy.errors import SourceError
from backy.sources import open_source
from tests.cli.runner import Backy

HEAD = """\
global: {{base-dir: {base}}}
schedules: {{often: {{daily: {{interval: 1d, keep: 9}}}}}}
defaults: {{schedule: often}}
"""


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "jobs.d").mkdir()
    return tmp_path


def warned(etc: Path, text: str, **jobs: str) -> list[str]:
    """What is warned of, without the folder; `text` begins in line 4."""
    (etc / "backy.yaml").write_text(HEAD.format(base=etc / "base") + text)
    for name, job in jobs.items():
        (etc / "jobs.d" / f"{name}.yaml").write_text(job)
    loaded = load(etc / "backy.yaml", open_source)
    assert loaded.problems == ()
    found = warnings(loaded, lambda settings: open_source(settings).paths)
    return [str(each).replace(f"{etc}/", "") for each in found]


def file_job(path: object) -> str:
    return f"source: {{type: file, disks: {{vda: {path}}}}}"


def test_what_is_right_is_not_warned_of(etc: Path) -> None:
    text = "hooks: {after-backup: [/bin/true, 'sh']}\n"
    jobs = f"jobs:\n  vm1:\n    {file_job('/dev/vda')}\n  vm2:\n    {file_job('/dev/vdb')}\n"
    assert warned(etc, text + jobs, vm3=f"vm3: {{{file_job('/dev/vdc')}}}\n") == []


@pytest.mark.parametrize("path", ["disk.img", "./disk.img", "~/disk.img", "$HOME/a", "/dev/$VG/a"])
def test_a_path_that_may_mean_another_file_is_named(etc: Path, path: str) -> None:
    text = f"jobs:\n  vm1:\n    source:\n      type: file\n      disks:\n        vda: {path}\n"
    [said] = warned(etc, text)
    assert said.startswith("backy.yaml:9: jobs.vm1.source.disks.vda: '")
    assert said.endswith("~ and $ are not replaced. Write an absolute path")


def test_a_path_in_an_included_file_is_named_with_that_file(etc: Path) -> None:
    [said] = warned(etc, "", vm1=f"# a comment\nvm1:\n  {file_job('disk.img')}\n")
    assert said.startswith("jobs.d/vm1.yaml:3: vm1.source.disks.vda: 'disk.img' ")


def test_every_program_that_is_not_there_is_named_once_where_it_is_configured(etc: Path) -> None:
    events = ["before-snapshot", "after-snapshot", "after-backup"]
    events += ["on-failure", "before-restore", "after-restore"]
    text = "hooks:\n" + "".join(f"  {event}: /none/{event}\n" for event in events)
    text += f"jobs:\n  vm1:\n    {file_job('/dev/vda')}\n    hooks:\n"
    text += "".join(
        f"      {event}: [{{command: [mine-{event}, x]}}, no-other]\n" for event in events
    )
    text += "  vm2:\n    source:\n      type: exec\n      command: [/none/source]\n"
    missing = "does not exist, or is not executable"
    expected = [
        f"backy.yaml:{line}: hooks.{event}: '/none/{event}' {missing}"
        for line, event in enumerate(events, 5)
    ]
    for line, event in enumerate(events, 15):
        expected.append(f"backy.yaml:{line}: jobs.vm1.hooks.{event}: 'mine-{event}' {missing}")
        if line == 15:
            expected.append(f"backy.yaml:{line}: jobs.vm1.hooks.{event}: 'no-other' {missing}")
    expected.append(f"backy.yaml:24: jobs.vm2.source.command: '/none/source' {missing}")
    assert warned(etc, text) == expected


def test_the_callback_of_backy_2_and_a_file_that_is_no_program_are_named(etc: Path) -> None:
    (etc / "backy.yaml").write_text("")
    callback = f"  backup-completed-callback: {etc}/backy.yaml"
    (etc / "backy.yaml").write_text(f"global:\n  base-dir: {etc}/base\n{callback}\n")
    loaded = load(etc / "backy.yaml", open_source)
    [said] = warnings(loaded, lambda settings: open_source(settings).paths)
    assert (said.line, said.key) == (3, "global.backup-completed-callback")


def test_a_hook_whose_place_depends_on_where_backy_runs_is_named(
    etc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (etc / "hook").write_text("#!/bin/sh\n")
    (etc / "hook").chmod(0o755)
    monkeypatch.chdir(etc)
    [said] = warned(etc, "hooks: {after-backup: ./hook}\n")
    assert "'./hook' depends on the working directory" in said


def test_a_file_that_no_pattern_includes_is_named(etc: Path) -> None:
    for name in ("vm2.yml", ".hidden.yml", "README"):
        (etc / "jobs.d" / name).write_text(f"vm2: {{{file_job('/dev/vdb')}}}\n")
    expected = "jobs.d/vm2.yml:1: it is not read: its name does not fit 'jobs.d/*.yaml'"
    assert warned(etc, "") == [expected]
    assert warned(etc, "include: [jobs.d/*.yaml, jobs.d/vm2.yml]\n") == []


def test_two_jobs_with_one_disk_are_named_by_whatever_name_the_disk_has(etc: Path) -> None:
    (etc / "disk").touch()
    (etc / "link").symlink_to("disk")
    text = f"jobs:\n  vm1:\n    {file_job(etc / 'disk')}\n  vm2:\n    {file_job(etc / 'link')}\n"
    text += "  vm3:\n    source: {type: rbd, disks: {vda: rbd/a}}\n"
    text += "  vm4:\n    source: {type: rbd, disks: {vda: rbd/a}}\n"
    text += "  vm5:\n    source: {type: rbd, disks: {vda: rbd/b}}\n"
    one, two = warned(etc, text)
    assert one == "backy.yaml:8: jobs.vm2.source: job vm1 backs up the same disk"
    assert two == "backy.yaml:12: jobs.vm4.source: job vm3 backs up the same source"


def test_a_base_directory_that_is_not_there_is_named(etc: Path) -> None:
    (etc / "base").rmdir()
    expected = "backy.yaml:1: global.base-dir: base does not exist. Is its file system mounted?"
    assert warned(etc, "") == [expected]


def test_warnings_are_shown_and_are_no_error(etc: Path) -> None:
    backy = Backy(etc / "base")
    (etc / "base").rmdir()
    (etc / "backy.yaml").write_text(HEAD.format(base=etc / "base"))
    said = backy.quiet("--config", etc / "backy.yaml", "config", "check")
    first, second = said.out.splitlines()
    assert first == f"{etc}/backy.yaml: 0 jobs in 1 file, no problems"
    assert second.startswith(f"warning: {etc}/backy.yaml:1: global.base-dir: {etc}/base does not")
    shown = backy.quiet("--config", etc / "backy.yaml", "config", "check", "--json").record()
    assert shown["problems"] == []
    [warning] = shown["warnings"]
    assert (warning["line"], warning["key"]) == (1, "global.base-dir")


def test_sources_are_opened_if_that_is_asked_for_and_a_bad_one_is_named(etc: Path) -> None:
    backy = Backy(etc / "base")
    (etc / "disk").write_bytes(b"disk" * 1024)
    jobs = {"good": "disk", "gone": "nothing"}
    text = "".join(f"  {job}:\n    {file_job(etc / name)}\n" for job, name in jobs.items())
    text += "  asks: {source: {type: exec, command: [/bin/false]}, schedule: often}\n"
    head = HEAD.format(base=etc / "base")
    (etc / "backy.yaml").write_text(f"{head}jobs:\n{text}")
    check = ("--config", etc / "backy.yaml", "config", "check")
    assert "source of" not in backy.ok(*check).out
    said = backy.run(*check, "--sources")
    assert said.code == SourceError.exit_code
    assert "source of good: vda" in said.out
    assert f"source of gone: opening the source {etc}/nothing: No such file" in said.out
    assert "source of asks: only a backup can tell" in said.out
    assert "sources that cannot be opened: gone" in said.err
    record = backy.run(*check, "--sources", "--json").record()
    looks = {look["job"]: look for look in record["sources"]}
    assert looks["good"] == {"job": "good", "disks": ["vda"], "error": ""}
    assert "No such file" in looks["gone"]["error"]
