"""What is there to be copied works as it is."""

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from backy.config import settings as config
from tests.cli.commands import COMMANDS, own_parameters
from tests.cli.runner import called, environment
from tests.lab.needs import absent, need
from tests.packaging.conftest import PROJECT

CONTRIB = PROJECT / "contrib"
NAGIOS = CONTRIB / "nagios"
SAMPLE = (CONTRIB / "backy.yaml").read_text()
IN_USE = re.sub(r"(?m)^#(?=  )", "", SAMPLE)
CHECK = {option for each in own_parameters(COMMANDS["check"]) for option in each.opts}


def understood(path: Path) -> dict[str, Any]:
    """What the program makes of a configuration, in which there must be nothing wrong."""
    asked(path, "check")
    said: dict[str, Any] = json.loads(asked(path, "show"))
    return said


def asked(path: Path, what: str) -> str:
    result = called(["--config", str(path), "config", what], environment())
    assert result.code == 0, result
    return result.out


def test_the_sample_configuration_is_valid_and_has_no_jobs() -> None:
    assert understood(CONTRIB / "backy.yaml")["jobs"] == {}


def test_the_sample_configuration_is_valid_with_all_that_is_commented_out(tmp_path: Path) -> None:
    (tmp_path / "backy.yaml").write_text(IN_USE)
    said = understood(tmp_path / "backy.yaml")
    assert list(said["jobs"]) == ["vm1"]
    assert said["jobs"]["vm1"]["schedule"] in said["schedules"]
    assert said["jobs"]["vm1"]["limits"] == list(said["limits"])


def test_what_the_sample_calls_defaults_are_the_defaults(tmp_path: Path) -> None:
    head = IN_USE[: IN_USE.index("# A backup gets the tags")]
    (tmp_path / "backy.yaml").write_text(head.replace("  schedule: default\n", ""))
    said = understood(tmp_path / "backy.yaml")
    assert said == json.loads(config.Config().model_dump_json())


def nrpe_commands() -> list[str]:
    text = (NAGIOS / "nrpe-backy.cfg").read_text()
    return re.findall(r"(?m)^command\[\w+\]=/usr/bin/sudo (.*)$", text)


def test_nrpe_runs_checks_with_options_that_there_are() -> None:
    assert nrpe_commands()
    for command in nrpe_commands():
        program, verb, *options = shlex.split(command)
        assert (program, verb) == ("/usr/bin/backy", "check")
        assert {each for each in options if each.startswith("--")} <= CHECK


def test_sudo_allows_what_nrpe_runs_and_nothing_else() -> None:
    text = (NAGIOS / "sudoers-backy").read_text()
    (allowed,) = re.findall(r"(?m)^nagios ALL=\(root\) NOPASSWD: (.*)$", text)
    assert allowed.split(", ") == nrpe_commands()


def test_sudo_takes_the_rules() -> None:
    need(absent("visudo"))
    rules = (NAGIOS / "sudoers-backy").read_bytes()
    subprocess.run(["visudo", "--check", "--file=-"], input=rules, check=True)


def test_icinga_can_set_every_option_of_the_check() -> None:
    text = (NAGIOS / "icinga2-backy.conf").read_text()
    named = re.findall(r'"(--[\w-]+)" = "\$backy_([\w]+)\$"', text)
    assert {option for option, _ in named} == CHECK - {"--help"}
    assert all(option == f"--{variable.replace('_', '-')}" for option, variable in named)


SCRIPTS = ["tools/make-deb", *(f"packaging/deb/{name}" for name in ("postinst", "postrm", "prerm"))]
SCRIPTS += [f"tests/packaging/{name}.sh" for name in ("hook", "machine")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_finds_nothing(script: str) -> None:
    need(absent("shellcheck"))
    subprocess.run(["shellcheck", "--shell=sh", PROJECT / script], check=True)
