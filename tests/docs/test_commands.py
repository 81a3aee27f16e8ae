"""docs/commands.md and the program know the same commands, options and revision words."""

from datetime import UTC, datetime
from typing import Any

import pytest

from backy.cli.commands import GROUPS
from backy.model.revision import Consistency, Disk, Revision, Trust
from backy.model.selector import select
from tests.cli import commands
from tests.docs import markdown

TEXT = (markdown.PROJECT / "docs" / "commands.md").read_text()
COMMANDS: dict[str, Any] = {"backy": commands.GROUP} | {
    f"backy {name}": command for name, command in commands.COMMANDS.items()
}


def documented(heading: str) -> set[str]:
    """The options, and the arguments, in the first column of a command's table."""
    text = markdown.section(TEXT, heading)
    if "It has no options." in text:
        return set()
    cells = [cell for row in markdown.table(text) for cell in next(iter(row.values())).split(", ")]
    return {cell.strip("`") for cell in cells}


def offered(name: str) -> set[str]:
    """The same, asked of the program. --help is explained once, for all."""
    names: set[str] = set()
    for parameter in commands.own_parameters(COMMANDS[name]):
        if parameter.param_type_name == "argument":
            is_one_or_none = parameter.nargs == 1 and not parameter.required
            names.add(f"[{parameter.metavar}]" if is_one_or_none else parameter.metavar)
        else:
            names |= {*parameter.opts, *parameter.secondary_opts}
    return names - {"-h", "--help", "--install-completion", "--show-completion"}


def test_every_command_has_a_section_and_every_section_a_command() -> None:
    sections = {text for text in markdown.headings(TEXT) if text.split()[0] == "backy"}
    assert sections == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_and_option_is_documented_and_no_other(name: str) -> None:
    assert documented(name) == offered(name)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "backy"])
def test_every_command_is_in_the_table_of_the_readme(name: str) -> None:
    readme = (markdown.PROJECT / "README.md").read_text()
    rows = markdown.table(markdown.section(readme, "Commands"))
    assert any(f"{row['command']} ".startswith(f"{name} ") for row in rows)


def test_the_readme_groups_the_commands_as_help_does() -> None:
    readme = (markdown.PROJECT / "README.md").read_text()
    listed: dict[str, list[str]] = {}
    for row in markdown.table(markdown.section(readme, "Commands")):
        if row["command"].startswith("**"):
            listed[row["command"].strip("*")] = []
        else:
            listed[list(listed)[-1]].append(row["command"].split()[1])
    said = {group: list(dict.fromkeys(names)) for group, names in listed.items()}
    assert said == {group: list(entries) for group, entries in GROUPS.items()}
    assert list(said) == list(GROUPS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "backy"])
def test_every_command_has_an_example_in_its_help(name: str) -> None:
    assert str(COMMANDS[name].epilog).startswith("Example: ")


def revisions() -> list[Revision]:
    """The history of the page's table."""
    disk = Disk(size=1, block_size=65536, index_hash="0" * 64, read=1, changed=1, stored=1)
    words = markdown.section(TEXT, "Revision words").split("With this history:")[1]
    return [
        Revision(
            id=row["id"],
            time=datetime.strptime(row["id"][:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC),
            parent=None,
            seconds=0,
            consistency=Consistency.NONE,
            disks={"vda": disk},
            tags=tuple(row["tags"].split()),
            trust=Trust(row["trust"]),
        )
        for row in markdown.table(words)
    ]


EXAMPLES = markdown.table(TEXT.split("these words name these revisions")[1])


@pytest.mark.parametrize("example", EXAMPLES, ids=[example["words"] for example in EXAMPLES])
def test_revision_words_name_what_the_page_says(example: dict[str, str]) -> None:
    named = [revision.id.rpartition("-")[2] for revision in select(example["words"], revisions())]
    assert " ".join(named) == example["revisions"].replace("none", "")
