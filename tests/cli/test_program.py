"""What the tests see of a command in their own process, a program says and does as well."""

import re
import shutil
from pathlib import Path

import pytest

from tests.cli.commands import COMMANDS
from tests.cli.in_process import ONLY_AS_PROGRAMS
from tests.cli.runner import (
    PROGRAM,
    SMALL,
    Backy,
    Result,
    called,
    environment,
    image,
    overwrite,
    ran,
)

CONFIGURATION = """
global: {{socket: {folder}/socket}}
schedules: {{default: {{hourly: {{interval: 1h, keep: 1}}}}}}
jobs: {{vm1: {{schedule: default, source: {{type: file, filename: {folder}/vm1.img}}}}}}
"""
# Of every command a use that gets as far as it can, after `used` made something for it to do.
USES = {
    "backup": ["vm1"],
    "boot": ["vm1", "--run", "print", "--state", "{folder}/vm"],
    "check": [],
    "config check": [],
    "config schema": [],
    "config show": [],
    "diff": ["vm1", "1", "0"],
    "expire": ["vm1"],
    "find": ["vm1"],
    "history": ["vm1"],
    "init": [],
    "jobs": ["--json"],
    "list": ["vm1"],
    "pause": ["vm1"],
    "purge": ["vm1"],
    "remove": ["vm1", "-r", "latest"],
    "reports": ["--json"],
    "reports delete": ["vm1", "{report}"],
    "reports show": ["vm1", "{report}"],
    "restore": ["vm1", "{folder}/new.img"],
    "resume": ["vm1"],
    "run": ["vm1"],
    "status": ["--once"],
    "tag": ["vm1", "+new"],
    "top": ["--once"],
    "undo": ["vm1"],
    "verify": ["vm1"],
}
CODES = {"check": 2, "verify": 6}  # no daemon runs; a block is damaged
ERRORS = {
    "a source": (4, ["backup", "vm2", "--source", "/nowhere"]),
    "a word": (2, ["list", "--nonsense"]),
    "an object": (9, ["list", "vm2"]),
    "no command": (2, ["nonsense"]),
    "JSON": (9, ["list", "vm2", "--json"]),
}
ABOUT = ["--help", "help list", "restore --help", "version"]


@pytest.fixture
def used(aged: Backy, tmp_path: Path) -> Backy:
    """A configured job with a revision in the trash, a damage that was reported, and a pause."""
    (tmp_path / "backy.yaml").write_text(CONFIGURATION.format(folder=tmp_path))
    image(tmp_path / "vm1.img", SMALL[1])
    aged.quiet("remove", "vm1", "-r", "first")
    overwrite(aged.chunk("vm1", aged.revisions("vm1")[0], 1), 100, b"rot")
    aged.refuses(6, "verify", "vm1")
    aged.quiet("pause", "vm1")
    shutil.copytree(aged.base, tmp_path / "copy")
    return aged


def both(
    backy: Backy, *arguments: str
) -> tuple[tuple[Result, list[str]], tuple[Result, list[str]]]:
    """What comes of a command in this process, and then as a program, from the same beginnings.

    What differs between two runs in any case, as do times and new ids, is made equal.
    """
    folder = backy.base.parent
    words = ["--config", str(folder / "backy.yaml"), *arguments]
    outcomes = []
    for run in (backy.run, backy.run_program):
        shutil.rmtree(backy.base)
        shutil.copytree(folder / "copy", backy.base)
        (folder / "new.img").unlink(missing_ok=True)
        result = run(*words)
        paths = sorted(plain(str(path)) for path in folder.rglob("*"))
        outcomes.append((Result(result.code, plain(result.out), plain(result.err)), paths))
    return outcomes[0], outcomes[1]


def plain(text: str) -> str:
    """Without numbers, ids and hashes, the units of rates, and the width of columns."""
    text = re.sub(r"\d{8}T\d{6}Z-\w{4}", "ID", text)
    text = re.sub(r"[0-9a-f]{64}|\d+(\.\d+)?( \w*B/s)?", "0", text)
    return re.sub(" +", " ", text)


def test_the_uses_are_of_all_commands() -> None:
    assert USES.keys() | ONLY_AS_PROGRAMS == COMMANDS.keys()


@pytest.mark.parametrize("command", USES)
def test_a_command_does_the_same_as_a_program_and_within_the_tests(
    used: Backy, command: str
) -> None:
    (report,) = used.ok("reports", "--json").record()["reports"]
    places = {"report": report["id"], "folder": used.base.parent}
    here, program = both(used, *command.split(), *(each.format(**places) for each in USES[command]))
    assert here == program
    assert here[0].code == CODES.get(command, 0)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_told_the_same_by_a_program_and_within_the_tests(
    used: Backy, kind: str
) -> None:
    code, arguments = ERRORS[kind]
    here, program = both(used, *arguments)
    assert here == program
    assert here[0].code == code


@pytest.mark.parametrize("words", ABOUT)
def test_help_and_version_are_the_same_from_a_program_and_within_the_tests(words: str) -> None:
    arguments, env = words.split(), environment()
    assert called(arguments, env) == ran([*PROGRAM, *arguments], env)
