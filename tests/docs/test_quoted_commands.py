"""A command that a page, a sample, a hint or a help text names can be typed, with its options."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer._click.exceptions import BadOptionUsage, MissingParameter, UsageError

from backy.cli.program import open_site
from tests.cli.commands import COMMANDS, GROUP
from tests.docs import markdown

PROJECT = markdown.PROJECT
IN_CODE = re.compile(r"(?<!`)`backy ([^`]+)`(?!`)")
# In a block that is not run: alone in a line, or behind the five fields of cron.
IN_BLOCK = re.compile(r"^(?:[\d*]+ [\d*]+ \S+ \S+ \S+ )?backy ([a-z-].*)$", re.MULTILINE)
# In prose nobody says where a command ends, so only what looks like its arguments is taken.
_ARGUMENT = r"--?\w[\w-]*|[A-Z]+\b|\{\{[^}]*\}\}"
IN_PROSE = re.compile(rf"\bbacky ((?:{'|'.join(COMMANDS)})(?: (?:{_ARGUMENT}))*)")
PLACEHOLDERS = {r"\{\{[^}]*\}\}": "JOB", r"[\[\]…]|\.\.\.": "", r"\bCOMMAND\b": "backup"}


def problem(text: str) -> str | None:
    """Why this cannot be typed behind "backy"; None where it can, but for what is left out."""
    for placeholder, word in PLACEHOLDERS.items():
        text = re.sub(placeholder, word, text)
    try:
        _parse(GROUP, shlex.split(text), None)
    except (MissingParameter, BadOptionUsage, typer.Exit):  # shortened, or --help
        return None
    except UsageError as error:
        return str(error)
    return None


def _parse(command: Any, words: list[str], parent: Any) -> None:  # noqa: ANN401 - typer's
    context = command.make_context("backy", list(words), parent=parent)
    if parent is None:
        open_site(context)
    rest = [*getattr(context, "_protected_args", ()), *context.args]
    if rest and hasattr(command, "commands"):
        _, inner, rest = command.resolve_command(context, rest)
        _parse(inner, rest, context)


def quoted() -> Iterator[tuple[Path, str]]:
    """Each command that is named, with the file that names it."""
    for page in markdown.documents():
        text = page.read_text()
        shown = [block.text for block in markdown.blocks(text) if block.language == "text"]
        for command in IN_CODE.findall(markdown.prose(text)) + IN_BLOCK.findall("\n".join(shown)):
            yield page, command
    for path in [*PROJECT.glob("contrib/**/*.*"), *PROJECT.glob("packaging/**/*")]:
        if path.is_file():
            yield from ((path, command) for command in IN_PROSE.findall(path.read_text()))
    for path in PROJECT.glob("src/**/*.py"):
        for text in strings(ast.parse(path.read_text())):
            yield from ((path, command) for command in IN_PROSE.findall(text))


def strings(tree: ast.AST) -> Iterator[str]:
    """Each text in a module; what an f-string fills in becomes JOB."""
    filled = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    parts = {id(part) for node in filled for part in node.values}
    for joined in filled:
        pieces = (part.value if isinstance(part, ast.Constant) else "JOB" for part in joined.values)
        yield "".join(map(str, pieces))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value


CASES = [
    pytest.param(text, id=f"{path.relative_to(PROJECT)}:{text}")
    for path, text in sorted(set(quoted()))
]


@pytest.mark.parametrize("text", CASES)
def test_a_command_that_is_named_can_be_typed(text: str) -> None:
    assert problem(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "nosuch vm1",
        "backup vm1 --nosuch",
        "verify vm1 vm2",
        "reports nosuch vm1 x",
        "--nosuch list",
    ],
)
def test_one_that_cannot_be_typed_is_found(text: str) -> None:
    assert problem(text)
