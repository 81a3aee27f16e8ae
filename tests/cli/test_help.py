"""Whoever asks for help gets it: every command, every option, an example."""

import re
from pathlib import Path

import pytest

import backy as package
from backy.cli import commands as table
from tests.cli.commands import COMMANDS, GROUP
from tests.cli.runner import called, environment


def said(*arguments: str) -> str:
    result = called(arguments, environment(COLUMNS="100"))
    assert (result.code, result.err) == (0, "")
    return result.out


def options_of(command: str) -> list[str]:
    """Every way to write every option."""
    parameters = COMMANDS[command].params
    return [name for each in parameters for name in [*each.opts, *each.secondary_opts]]


def test_the_commands_are_those_that_were_promised() -> None:
    promised = {"backup", "diff", "find", "list", "purge", "remove", "restore", "tag", "undo"}
    promised |= {"verify", "scrub", "reports", "reports show", "reports delete"}
    promised |= {"daemon", "status", "top", "jobs", "run", "pause", "resume", "check", "expire"}
    promised |= {"config check", "config show", "config schema"}
    assert set(COMMANDS) >= promised


@pytest.fixture(scope="module")
def overview() -> str:
    return said("--help")


@pytest.mark.parametrize("command", GROUP.commands)
def test_the_overview_says_what_each_command_does(overview: str, command: str) -> None:
    about = re.escape(table.COMMANDS[command].help)
    assert re.search(rf"^  {command} +{about}$", overview, re.MULTILINE)


def test_the_overview_has_the_commands_by_what_they_are_for_and_backup_is_the_first(
    overview: str,
) -> None:
    headings = re.findall(r"^(\S.*):$", overview, re.MULTILINE)
    assert headings == [*table.GROUPS, "Options"]
    listed = re.findall(r"^  (\w+)  ", overview[: overview.index("Options:")], re.MULTILINE)
    assert listed == list(table.COMMANDS)
    assert listed[0] == "backup"


@pytest.mark.parametrize("command", GROUP.commands)
def test_the_table_of_commands_has_the_first_sentence_of_the_help_of_each(command: str) -> None:
    assert GROUP.commands[command].params, "it is the command itself"
    assert table.COMMANDS[command].help == GROUP.commands[command].get_short_help_str(200)


def test_the_table_has_every_module_that_has_a_command() -> None:
    modules = {
        path.stem
        for path in Path(table.__file__).parent.glob("*.py")
        if re.search(r"^@app\.command|app\.add_typer", path.read_text(), re.MULTILINE)
    }
    assert {entry.module for entry in table.COMMANDS.values()} == modules


@pytest.mark.parametrize("command", [command for command in COMMANDS if " " in command])
def test_the_help_of_a_command_says_what_those_within_it_do(command: str) -> None:
    outer, _, inner = command.rpartition(" ")
    assert re.search(rf"^  {inner}  +\w.{{10}}", said(*outer.split(), "--help"), re.MULTILINE)


def test_the_overview_has_the_exit_codes_and_the_global_options(overview: str) -> None:
    for word in ("--base-dir", "--version", "--help", "7 busy", "130 stopped"):
        assert word in overview


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_explains_each_option_and_has_an_example(command: str) -> None:
    text = said(*command.split(), "--help")
    listed = text[text.index("Options:") : text.index("Example:")]
    for option in options_of(command):
        if option.startswith("-"):
            assert re.search(rf"(^|\s){option}[ ,]", listed), option
    example = text[text.index("Example:") :]
    assert re.search(rf"backy {command}\s", example)


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_and_no_argument_is_left_unexplained(command: str) -> None:
    for parameter in COMMANDS[command].params:
        assert getattr(parameter, "help", None), parameter.name


@pytest.mark.parametrize("command", COMMANDS)
def test_an_example_uses_only_what_there_is(command: str) -> None:
    epilog = str(COMMANDS[command].epilog)
    known = {"-daily", *options_of(command)}
    assert set(re.findall(r"(?<=\s)-{1,2}[a-z][\w-]*", epilog)) <= known | {"--sparse"}


@pytest.mark.parametrize("group", [[], ["config"]], ids=str)
def test_without_a_command_there_is_help_on_standard_error(group: list[str]) -> None:
    result = called(group, environment())
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(" ".join(["Usage: backy", *group]))


@pytest.mark.parametrize("command", ["", "list", "config", "reports show"])
def test_help_is_a_command_too(command: str) -> None:
    words = command.split()
    assert said("help", *words) == said(*words, "--help")


def test_help_for_what_is_no_command_is_wrong_usage() -> None:
    result = called(["help", "lsit"], environment())
    assert result.code == 2
    assert "'list'" in result.err


@pytest.mark.parametrize("flag", ["-h", "--help"])
@pytest.mark.parametrize("command", ["list", "reports", "reports show"])
def test_help_has_a_short_name(command: str, flag: str) -> None:
    assert said(*command.split(), flag).startswith(f"Usage: backy {command}")


@pytest.mark.parametrize(
    "words", ["-V", "version", "--base-dir / --version", "--base-dir / version"]
)
def test_the_version_is_the_same_however_it_is_asked_for(words: str) -> None:
    assert said(*words.split()) == f"backy {package.__version__}\n"
