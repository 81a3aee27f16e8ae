"""The manual pages say what the program says, and roff takes them without a complaint."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from backy import errors
from backy.config import settings as config
from tests.cli.commands import COMMANDS, GROUP
from tests.lab.needs import absent, need
from tests.packaging.conftest import PROJECT
from tools import make_man

PAGES = make_man.pages("2026-11-23")
MODELS = {
    name: each
    for name, each in vars(config).items()
    if isinstance(each, type) and issubclass(each, BaseModel) and "pydantic" not in each.__module__
}
# What others derive from, and what has the same keys as a job.
for hidden in ("Values", "Defaults"):
    del MODELS[hidden]


def formatted(text: str) -> str:
    """What a reader sees, without bold and in one line."""
    need(absent("mandoc"))
    done = subprocess.run(
        ["mandoc", "-T", "utf8"], input=text, capture_output=True, text=True, check=True
    )
    return " ".join(re.sub(".\b", "", done.stdout).split())


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_nothing_that_mandoc_warns_of(name: str) -> None:
    need(absent("mandoc"))
    lint = ["mandoc", "-T", "lint", "-W", "warning"]
    done = subprocess.run(lint, input=PAGES[name], capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_a_page_with_all_that_its_help_says(command: str) -> None:
    seen = formatted(PAGES[f"backy-{command.replace(' ', '-')}.1"])
    said = COMMANDS[command]
    for paragraph in said.help.split("\n\n"):
        assert " ".join(paragraph.split()) in seen
    for parameter in said.params:
        assert " ".join(parameter.help.split()) in seen
        for option in parameter.opts if parameter.param_type_name == "option" else []:
            assert option in seen
    if said.epilog:
        assert " ".join(said.epilog.removeprefix("Example: ").split()) in seen


def test_the_page_of_the_program_names_its_commands_options_and_variables() -> None:
    seen = formatted(PAGES["backy.1"])
    for name in GROUP.commands:
        assert f"backy {name} " in seen
        assert f"backy-{name}(1)" in seen
    for word in (
        "--base-dir",
        "--config",
        "BACKY_BASE_DIR",
        "BACKY_CONFIG",
        "/etc/backy/backy.yaml",
    ):
        assert word in seen


def test_the_page_of_the_program_has_every_exit_code() -> None:
    codes = re.findall(r"\.TP\n\.B (\d+)\n", PAGES["backy.1"])
    own = {kind.exit_code for kind in make_man.subclasses(errors.BackyError)}
    assert list(map(int, codes)) == sorted(own | {0, 1, 2, 70})


def test_pages_of_commands_within_a_command_name_each_other() -> None:
    assert "backy-reports-show(1)" in formatted(PAGES["backy-reports.1"])
    assert "backy-reports(1)" in formatted(PAGES["backy-reports-show.1"])


@pytest.mark.parametrize("model", MODELS)
def test_every_setting_is_explained_and_nothing_else(model: str) -> None:
    page = PAGES["backy.yaml.5"]
    heading = "SETTINGS" if model == "Config" else model.upper()
    (section,) = re.findall(rf"(?ms)^\.SH {heading}\n(.*?)(?=^\.SH |\Z)", page)
    named = re.findall(r"(?m)^\.TP\n\.B (.+)\n\S", section)
    fields = MODELS[model].model_fields
    assert [name.replace("\\", "") for name in named] == [each.alias for each in fields.values()]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        pytest.param("stop-timeout", "(duration; default: 10m)", id="duration"),
        pytest.param("rate", "(size)", id="size"),
        pytest.param("nice", "(number; default: 10)", id="number"),
        pytest.param("expire", "(true or false; default: true)", id="switch"),
        pytest.param("consistency", "(one of application, filesystem, crash;", id="choice"),
        pytest.param("command", "(list; text; required)", id="required"),
        pytest.param("base-dir", "(text; default: /srv/backy)", id="path"),
        pytest.param("jobs", "(mapping; mapping as in JOB)", id="mapping"),
    ],
)
def test_a_setting_has_its_type_and_its_default_from_the_code(setting: str, says: str) -> None:
    seen = formatted(PAGES["backy.yaml.5"])
    assert re.search(rf" {setting} [^()]*(\(\d\)[^()]*)?{re.escape(says)}", seen)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(r"a\nb \fBc\fR \(aq \\", id="backslashes"),
        pytest.param("--json -r 2026-11-23", id="dashes"),
        pytest.param("'single' `back` ^up ~tilde \"double\"", id="quotes"),
        pytest.param(".TH is no request", id="dot"),
        pytest.param("first\n'br is no request\n.br neither", id="lines"),
        pytest.param("naïve “quoted” 日本", id="beyond-ascii"),
    ],
)
def test_text_is_shown_as_it_is(text: str) -> None:
    page = "\n".join(
        [make_man.heading("x.1", "2026-11-23"), ".SH TEXT", make_man.escaped(text), ""]
    )
    assert f"TEXT {' '.join(text.split())} " in formatted(page)


def test_pages_are_written_by_section_and_with_the_date_that_was_asked_for(tmp_path: Path) -> None:
    make = [sys.executable, "-m", "tools.make_man", str(tmp_path)]
    settings = {"SOURCE_DATE_EPOCH": "1700000000", "PYTHONPATH": str(PROJECT / "src")}
    subprocess.run(make, env=settings, cwd=PROJECT, check=True)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
    assert written == {f"man{name[-1]}/{name}" for name in PAGES}
    assert '.TH BACKY 1 2023-11-14 "backy ' in (tmp_path / "man1/backy.1").read_text()
