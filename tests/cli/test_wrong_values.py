"""What is typed wrong is wrong usage, exit code 2: every option and argument of every command."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.commands import COMMANDS
from tests.cli.runner import Backy, refusal, tree

# A value that cannot be, for what parses or checks the value of an option or argument.
WRONG = {
    "block_size": ["100000", "32KiB", "32MiB", "big"],
    "check_job": ["vm 1", "../vm1"],
    "check_tag": ["bad tag", "a..b"],
    "disk_place": ["a b=/nowhere", "vda="],
    "float": ["much", "nan"],
    "group": ["nosuch-group"],
    "Literal": ["tape"],
    "int": ["x", "0"],
    "job_word": ["vm 1", "../vm1", "../vm1@latest", "@daily"],
    "level": ["x", "0", "20", "1.5", "-1"],
    "listen": ["localhost", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "[::1:5"],
    "mark": ["daily", "+bad tag", "+"],
    "parse_duration": ["soon", "3x", "-1h"],
    "path": [""],
    "size": ["fast", "1KiB"],
    "span": ["soon", "0s"],
    "store": ["tape"],
    "target": [""],
}
# Whatever is typed here is a question to the repository: what does not exist has another code.
ANYTHING = {"-r", "--disk", "REV", "REPORT"}
PATTERNS = {("mount", "--job"), ("boot", "--network")}  # any text may be right
RIGHT = {"DIR": "mnt", "JOB": "vm1", "TARGET": "new.img", "REV": "0", "REPORT": "x"}
RIGHT |= {"+TAG|-TAG": "+new", "SPEC": "0", "JOB[@REV]": "vm1"}


def parser_of(parameter: Any) -> str:  # noqa: ANN401 - typer's
    """The name of what turns the text into a value."""
    found = parameter.type_descriptor
    return str(getattr(found.parameter_info.parser or found.annotation, "__name__", ""))


def metavar(parameter: Any) -> str:  # noqa: ANN401 - typer's
    is_option = parameter.param_type_name == "option"
    return str(parameter.opts[0] if is_option else parameter.metavar)


def parameters() -> Iterator[tuple[str, Any]]:
    """Every parameter of every command that takes a value."""
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False):
                yield name, parameter


def words(command: str, wrong: Any, value: str) -> list[str]:  # noqa: ANN401 - typer's
    """The command, right but for one value. What a dash begins stands after its option's "="."""
    options, arguments = [], []
    for parameter in COMMANDS[command].params:
        is_wrong = parameter is wrong
        if parameter.param_type_name == "option":
            if is_wrong or parameter.required:
                text = value if is_wrong else RIGHT[parameter.metavar]
                options.append(f"{max(parameter.opts, key=len)}={text}")
        elif is_wrong or parameter.required:
            arguments.append(value if is_wrong else RIGHT[parameter.metavar])
    separator = [] if command == "tag" else ["--"]
    return [*command.split(), *options, *separator, *arguments]


CASES = [
    pytest.param(command, parameter, value, id=f"{command} {metavar(parameter)} {value!r}")
    for command, parameter in parameters()
    if metavar(parameter) not in ANYTHING and command != "check"
    if (command, metavar(parameter)) not in PATTERNS
    for value in WRONG[parser_of(parameter)]
]


def test_whatever_takes_a_value_is_checked() -> None:
    unchecked = {
        metavar(parameter)
        for command, parameter in parameters()
        if parser_of(parameter) not in WRONG and command != "check"
        if (command, metavar(parameter)) not in PATTERNS
    }
    assert unchecked == ANYTHING


@pytest.mark.parametrize(("command", "parameter", "value"), CASES)
def test_a_wrong_value_is_wrong_usage_and_leaves_no_trace(
    aged: Backy,
    command: str,
    parameter: Any,  # noqa: ANN401 - typer's
    value: str,
) -> None:
    before = tree(aged.base.parent)
    said = refusal(aged.run(*words(command, parameter, value)), 2)
    assert said.message.startswith(f"invalid value for '{metavar(parameter)}': ")
    assert tree(aged.base.parent) == before


# What else must be typed before anybody looks at a revision word.
OPTIONS = {"serve": ["--socket=x.sock"]}
REST = {"purge": ["vm1"], "restore": ["new.img"]}


@pytest.mark.parametrize("word", ["nosuch,,latest", "latest,", "tag:", ""])
@pytest.mark.parametrize(
    ("command", "parameter"),
    [
        pytest.param(command, parameter, id=f"{command} {parameter.name}")
        for command, parameter in parameters()
        if metavar(parameter) in {"-r", "REV"} or parser_of(parameter) == "job_word"
    ],
)
def test_a_malformed_revision_word_is_wrong_usage_even_where_it_names_what_is_missing(
    aged: Backy,
    command: str,
    parameter: Any,  # noqa: ANN401 - typer's
    word: str,
) -> None:
    before = tree(aged.base.parent)
    value = f"vm1@{word}" if parser_of(parameter) == "job_word" else word
    typed = [*words(command, parameter, value), *REST.get(command, [])]
    said = refusal(aged.run(typed[0], *OPTIONS.get(command, []), *typed[1:]), 2)
    assert said.message.startswith(f"{word!r} is not a revision word: ")
    assert said.hint.startswith("Examples: latest, 1, ")
    assert tree(aged.base.parent) == before


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["purge"], id="neither-job"),
        pytest.param(["purge", "vm1", "--job", "vm1"], id="both"),
        pytest.param(["reports", "delete", "vm1"], id="no-report"),
        pytest.param(["restore", "vm1", "-", "--json"], id="json-and-disk"),
        pytest.param(["backup", "vm1", "--source=vda=/1", "--source=vda=/2"], id="disk-twice"),
        pytest.param(["backup", "vm1", "--source=/1", "--source=rbd:a/b"], id="two-kinds"),
        pytest.param(["backup", "vm1", "--source=libvirt:a", "--source=libvirt:b"], id="two-vms"),
        pytest.param(["backup", "vm1", "--source=vda=qemu:/1"], id="disk-of-a-vm"),
        pytest.param(["backup", "vm1", "--source=rbd:image"], id="no-image"),
        pytest.param(["backup", "vm1", "--source=nbd:host"], id="no-uri"),
        pytest.param(["backup", "vm1", "--source=qcow2:"], id="no-path"),
        pytest.param(["tag", "vm1"], id="no-tag"),
        pytest.param(["boot", "vm1", "--run=print", "--into=/x"], id="print-and-move"),
        pytest.param(["boot", "vm1", "--run=libvirt", "--cpus=2"], id="domain-and-cpus"),
        pytest.param(["boot", "vm1", "--into=vmdk:/x"], id="move-to-vmdk"),
        pytest.param(["boot", "vm1", "--into=nbd://host/x"], id="move-to-nbd"),
        pytest.param(["boot", "vm1", "--into=rbd:x"], id="move-to-no-image"),
        pytest.param(["tag", "vm1", "+a", "-r"], id="no-words"),
        pytest.param(["remove", "vm1"], id="no-revision"),
    ],
)
def test_values_that_do_not_go_together_are_wrong_usage(aged: Backy, words: list[str]) -> None:
    before = tree(aged.base)
    result = aged.run(words[0], *words[1:2], "--json", *words[2:])
    assert (result.error()["error"], result.code) == ("UsageError", 2)
    assert result.error()["hint"]
    assert tree(aged.base) == before


@pytest.mark.parametrize(
    "words",
    [
        *(
            pytest.param([f"{parameter.opts[0]}={value}"], id=f"{parameter.opts[0]} {value!r}")
            for parameter in COMMANDS["check"].params
            if not getattr(parameter, "is_flag", False) and parser_of(parameter) in WRONG
            for value in WRONG[parser_of(parameter)]
        ),
        pytest.param(["--job", "("], id="expression"),
        pytest.param(["vm1"], id="argument"),
        pytest.param(["--nonsense"], id="option"),
        pytest.param(["--config", "/nowhere"], id="configuration"),
    ],
)
def test_check_says_unknown_for_what_is_typed_wrong(backy: Backy, words: list[str]) -> None:
    result = backy.run("check", *words)
    assert result.code == 3
    assert result.out.startswith("BACKY UNKNOWN - ")
    assert result.err == ""


def test_check_says_unknown_where_what_is_wrong_stands_before_it(backy: Backy) -> None:
    result = backy.run("--nonsense", "check")
    assert (result.code, result.err) == (3, "")
    assert result.out.startswith("BACKY UNKNOWN - no such option: --nonsense")


@pytest.mark.parametrize("option", ["--base-dir", "--config"])
def test_a_folder_that_is_called_like_a_command_is_not_taken_for_it(
    backy: Backy, option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    unknown = backy.run(option, "list", "check", "--nonsense")
    assert (unknown.code, unknown.err) == (3, "")
    assert unknown.out.startswith("BACKY UNKNOWN - ")
    said = refusal(backy.run(option, "check", "list", "--nonsense"), 2)
    assert said.message == "no such option: --nonsense"
