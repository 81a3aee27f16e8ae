"""--base-dir and --config mean the same before the command and after it."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.cli.commands import COMMANDS, GROUP
from tests.cli.runner import SMALL, Backy, Result, called, environment, image

CONFIGURATION = """
global: {{base-dir: {base}, socket: {base}/socket}}
schedules: {{default: {{daily: {{interval: 1d, keep: 1}}}}}}
jobs: {{vm1: {{schedule: default, source: {{type: file, filename: /nowhere}}}}}}
"""


@pytest.fixture
def configuration(aged: Backy) -> Path:
    """Whose base directory is that of `aged`, with the job vm1."""
    path = aged.base.parent / "backy.yaml"
    path.write_text(CONFIGURATION.format(base=aged.base))
    return path


def run(*arguments: object, env: Mapping[str, str] | None = None) -> Result:
    """A command without a base directory that the tests choose."""
    return called([*map(str, arguments)], environment(**env or {}))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_both(command: str) -> None:
    options = {option for each in COMMANDS[command].params for option in each.opts}
    assert {"--base-dir", "--config"} <= options
    assert {"--base-dir", "--config"} <= {name for each in GROUP.params for name in each.opts}


def test_the_base_directory_may_stand_after_the_command(aged: Backy) -> None:
    expected = aged.quiet("list", "vm1").out
    for words in (
        ["list", "vm1", "--base-dir", aged.base],
        ["list", f"--base-dir={aged.base}", "vm1"],
    ):
        assert run(*words) == Result(0, expected, "")


def test_it_may_stand_after_a_command_within_a_command(aged: Backy) -> None:
    expected = aged.quiet("reports").out
    assert run("reports", "--base-dir", aged.base) == Result(0, expected, "")
    assert run("reports", "delete", "vm1", "--healed", "--base-dir", aged.base).code == 0
    assert run("reports", "--base-dir", aged.base, "delete", "vm1", "--healed").code == 0


def test_it_may_stand_among_tags(aged: Backy) -> None:
    assert run("tag", "vm1", "-daily", "--base-dir", aged.base, "+new").code == 0
    assert aged.said_of("vm1", aged.revisions("vm1")[-1])["tags"] == ["new"]


def test_the_configuration_may_stand_after_the_command(aged: Backy, configuration: Path) -> None:
    expected = run("--config", configuration, "jobs")
    assert expected.code == 0
    assert run("jobs", "--config", configuration) == expected
    assert run("list", "vm1", "--config", configuration).out == aged.quiet("list", "vm1").out


def test_one_may_stand_before_and_the_other_after(configuration: Path, tmp_path: Path) -> None:
    other = Backy(tmp_path / "other")
    other.backup("vm9", image(tmp_path / "vm9.img", SMALL[1]))
    for words in (
        ["--config", configuration, "jobs", "--base-dir", other.base],
        ["--base-dir", other.base, "jobs", "--config", configuration],
    ):
        assert "vm9" in run(*words).out, (
            "a base directory that is asked for is not that of the file"
        )


def test_the_same_in_both_places_is_fine_and_something_else_is_wrong_usage(aged: Backy) -> None:
    assert run("--base-dir", aged.base, "list", "--base-dir", aged.base).code == 0
    for words in (
        ["--base-dir", aged.base, "list", "--base-dir", "/nowhere"],
        ["reports", "--base-dir", aged.base, "show", "vm1", "x", "--base-dir", "/nowhere"],
    ):
        result = run(*words)
        assert result.code == 2
        assert str(aged.base) in result.err
        assert "/nowhere" in result.err
        assert "--base-dir" in result.err


def test_what_is_typed_counts_more_than_the_environment(aged: Backy) -> None:
    env = {"BACKY_BASE_DIR": "/nowhere"}
    expected = aged.quiet("list").out
    assert run("list", "--base-dir", aged.base, env=env) == Result(0, expected, "")
    assert run("list", env={"BACKY_BASE_DIR": os.fspath(aged.base)}) == Result(0, expected, "")
