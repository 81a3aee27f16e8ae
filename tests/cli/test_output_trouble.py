"""Trouble with the output is not trouble with the work: that is done, and the exit code says so."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.commands import COMMANDS
from tests.cli.runner import (
    PROGRAM,
    SMALL,
    Argument,
    Backy,
    Result,
    environment,
    image,
    overwrite,
    ran,
)

CONFIGURATION = """
global: {{base-dir: {folder}/backups, socket: {folder}/socket}}
schedules: {{default: {{daily: {{interval: 1d, keep: 1}}}}}}
jobs: {{vm1: {{schedule: default, source: {{type: file, filename: {folder}/vm1.img}}}}}}
"""
FULL = 'exec "$@" >/dev/full'
NO_OUTPUT = 'exec "$@" >&-'
NO_ERRORS = 'exec "$@" 2>&-'
NOTHING = 'exec "$@" <&- >&- 2>&-'


class Worked(Backy):
    """The job vm1, configured, with revisions, something in the trash, and a healed report."""

    @property
    def folder(self) -> Path:
        return self.base.parent

    def command(self, *arguments: Argument) -> list[str]:
        words = [word.format(folder=self.folder) for word in map(str, arguments)]
        return super().command("--config", self.folder / "backy.yaml", *words)

    def redirected(self, script: str, *arguments: Argument) -> Result:
        return self.run(*arguments, under=["sh", "-c", script, "sh"])

    def unread(self, *arguments: Argument) -> Result:
        """Run it with a pipe to standard output that nobody reads any more."""
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(
                self.command(*arguments),
                stdout=writer,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        finally:
            os.close(writer)
        return Result(done.returncode, "", done.stderr)

    def tags(self) -> list[list[str]]:
        return [self.said_of("vm1", each)["tags"] for each in self.revisions("vm1")]

    def reports(self) -> list[str]:
        return [path.name for path in (self.base / "vm1" / "quarantine").iterdir()]

    def status(self) -> str:
        return (self.base / "vm1" / "status.json").read_text()


@pytest.fixture(scope="session")
def first_worked(tmp_path_factory: pytest.TempPathFactory, first_aged: Backy) -> Worked:
    folder = tmp_path_factory.mktemp("worked")
    made = Worked(folder / "backups")
    shutil.copytree(first_aged.base, made.base)
    image(folder / "vm1.img", SMALL[3])
    (folder / "backy.yaml").write_text(CONFIGURATION.format(folder=folder))
    overwrite(made.chunk("vm1", made.revisions("vm1")[-1], 1), 100, b"rot")
    made.ok("verify", "vm1")
    made.ok("remove", "vm1", "-r", "first")
    return made


@pytest.fixture
def worked(first_worked: Worked, tmp_path: Path) -> Worked:
    shutil.copytree(first_worked.folder, tmp_path / "worked")
    (tmp_path / "worked" / "backy.yaml").write_text(
        CONFIGURATION.format(folder=tmp_path / "worked")
    )
    return Worked(tmp_path / "worked" / "backups")


# The arguments with which each command prints something, and how it shows that its work is done.
Proof = Callable[[Worked], bool]
_LOOKS: Proof = lambda _: True  # noqa: E731
COMMANDS_AT_WORK: dict[str, tuple[list[str], Proof]] = {
    "backup": (["vm1"], lambda it: len(it.revisions("vm1")) == 3),
    "boot": (["vm1", "--run", "print", "--state", "{folder}/vm"], _LOOKS),
    "check": ([], _LOOKS),
    "config check": ([], _LOOKS),
    "config schema": ([], _LOOKS),
    "config show": ([], _LOOKS),
    "diff": (["vm1", "1", "0"], _LOOKS),
    "expire": (["vm1"], lambda it: it.tags() != [["upgrade"], ["daily"]]),
    "find": (["vm1"], _LOOKS),
    "history": (["vm1"], _LOOKS),
    "init": ([], _LOOKS),
    "jobs": ([], _LOOKS),
    "list": (["vm1"], _LOOKS),
    "pause": (["vm1"], lambda it: '"paused": "2' in it.status()),
    "purge": (["vm1"], lambda it: len(it.chunks_of("vm1")) == len(it.chunks_named("vm1"))),
    "remove": (["vm1", "-r", "1"], lambda it: len(it.revisions("vm1")) == 1),
    "reports": ([], _LOOKS),
    "reports delete": (["vm1", "--healed"], lambda it: it.reports() == []),
    "reports show": (["vm1", "{report}"], _LOOKS),
    "restore": (
        ["vm1", "{folder}/new.img"],
        lambda it: (it.folder / "new.img").read_bytes() == SMALL[3],
    ),
    "resume": (["vm1"], lambda it: '"paused": null' in it.status()),
    "run": (["vm1"], lambda it: len(it.revisions("vm1")) == 3),
    "scrub": ([], lambda it: (it.base / "vm1" / "scrub.json").exists()),
    "status": ([], _LOOKS),
    "tag": (["vm1", "+new"], lambda it: it.tags()[-1] == ["daily", "new"]),
    "top": ([], _LOOKS),
    "undo": (["vm1"], lambda it: len(it.revisions("vm1")) == 3),
    "verify": (["vm1"], lambda it: '"verified": "2' in it.status()),
}
SOME = pytest.mark.parametrize("command", ["backup", "check", "list", "restore", "status"])
DONE = "Apart from that, the command has done its work."


def words(worked: Worked, command: str) -> tuple[list[str], Proof]:
    """What to type, and the proof."""
    arguments, proof = COMMANDS_AT_WORK[command]
    (report,) = worked.reports()
    return [*command.split(), *(each.replace("{report}", report) for each in arguments)], proof


def test_every_command_is_here_but_those_that_run_until_a_signal() -> None:
    assert {*COMMANDS_AT_WORK, "daemon", "mount", "serve"} == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS_AT_WORK)
def test_where_standard_output_is_full_the_work_is_done_and_the_exit_code_tells(
    worked: Worked, command: str
) -> None:
    typed, is_done = words(worked, command)
    result = worked.redirected(FULL, *typed)
    assert is_done(worked)
    assert "Traceback" not in result.err
    problem = "not all output could be written: standard output: No space left on device"
    last, hint = result.err.splitlines()[-2:] if command != "check" else (result.err, "")
    if command == "check":
        assert (result.code, last) == (3, f"BACKY UNKNOWN - {problem}. {DONE}\n")
    else:
        assert (result.code, last, hint) == (74, f"backy: {problem}", f"  {DONE}")


@SOME
def test_where_nobody_reads_standard_output_any_more_nothing_is_wrong(
    worked: Worked, command: str
) -> None:
    typed, is_done = words(worked, command)
    expected = 2 if command == "check" else 0
    result = worked.unread(*typed)
    assert is_done(worked)
    assert (result.code, result.err) == (expected, "")


@SOME
@pytest.mark.parametrize("script", [NO_OUTPUT, NO_ERRORS, NOTHING], ids=["out", "err", "all"])
def test_where_a_standard_stream_is_closed_from_the_beginning_nothing_is_wrong(
    worked: Worked, command: str, script: str
) -> None:
    typed, is_done = words(worked, command)
    result = worked.redirected(script, *typed)
    assert is_done(worked)
    assert result.code == (2 if command == "check" else 0)
    assert result.err == ""
    assert bool(result.out) == (script == NO_ERRORS)


def test_an_error_keeps_its_exit_code_where_it_cannot_be_told(worked: Worked) -> None:
    for script in (FULL, NO_ERRORS, NOTHING, 'exec "$@" >/dev/full 2>&1'):
        assert worked.redirected(script, "list", "vm2").code == 9
        assert worked.redirected(script, "list", "--nonsense").code == 2
        assert ran(["sh", "-c", script, "sh", *PROGRAM], environment()).code == 2


def test_warnings_that_could_not_be_written_are_told_by_the_exit_code(worked: Worked) -> None:
    (worked.base / "vm1" / "revisions" / worked.revisions("vm1")[0] / "revision.json").unlink()
    expected = worked.ok("list", "vm1")
    assert expected.err
    result = worked.redirected('exec "$@" 2>/dev/full', "list", "vm1")
    assert (result.code, result.out) == (74, expected.out)


def test_with_json_output_that_could_not_be_written_is_an_error_like_others(worked: Worked) -> None:
    result = worked.redirected(FULL, "tag", "vm1", "+new", "--json")
    assert (result.error()["error"], result.error()["exit_code"], result.code) == (
        "OutputError",
        74,
        74,
    )


@pytest.mark.parametrize(
    ("script", "why"),
    [
        pytest.param(FULL, "No space left on device", id="full"),
        pytest.param(NO_OUTPUT, "Bad file descriptor", id="closed"),
        pytest.param(NOTHING, "", id="all-closed"),
    ],
)
def test_a_disk_that_cannot_be_written_to_standard_output_is_not_restored(
    worked: Worked, script: str, why: str
) -> None:
    result = worked.redirected(script, "restore", "vm1", "-")
    assert result.code == 10
    assert why in result.err


def test_the_version_is_told_or_the_exit_code_says_that_it_was_not(worked: Worked) -> None:
    for typed in (["--version"], ["version"], ["--help"], ["help", "list"]):
        command = ["sh", "-c", FULL, "sh", *PROGRAM, *typed]
        assert ran(command, environment()).code == 74
        assert ran(["sh", "-c", NOTHING, "sh", *PROGRAM, *typed], environment()).code == 0
    assert worked.redirected(FULL, "--version").code == 74


NAME = "größe"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_name_that_the_terminal_cannot_show_is_escaped(
    backy: Backy, tmp_path: Path, encoding: str
) -> None:
    backy.backup(NAME, image(tmp_path / "vm1.img", SMALL[1]))
    env = {"PYTHONIOENCODING": encoding}
    shown = NAME if encoding != "ascii" else "gr\\xf6\\xdfe"
    listed = subprocess.run(
        backy.command("list"), env=environment(**env), capture_output=True, check=True
    )
    assert f"\n{shown} " in listed.stdout.decode(encoding)
    missing = subprocess.run(
        backy.command("list", f"{NAME}r"), env=environment(**env), capture_output=True, check=False
    )
    assert missing.returncode == 9
    assert shown in missing.stderr.decode(encoding)


def test_a_path_with_bytes_that_are_no_text_is_printed_as_it_is(
    aged: Backy, tmp_path: Path
) -> None:
    base = tmp_path / "\udcff"
    shutil.copytree(aged.base, base)
    for locale in ("C", "C.UTF-8", "en_US.UTF-8"):
        command = [*PROGRAM, "find", "vm1", "--base-dir", str(base)]
        env = environment(LC_ALL=locale)
        done = subprocess.run(command, env=env, capture_output=True, check=True)
        assert Path(os.fsdecode(done.stdout.rstrip())).exists()
