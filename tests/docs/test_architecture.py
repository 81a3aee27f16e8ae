"""ARCHITECTURE.md and README.md say what the code says: folders, layers, exit codes."""

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import backy
from backy import errors
from tests.docs import markdown

ARCHITECTURE = (markdown.PROJECT / "ARCHITECTURE.md").read_text()
README = (markdown.PROJECT / "README.md").read_text()


def exit_codes() -> dict[str, int]:
    """Of each class in backy.errors; others derive from one of these, and count as that."""
    found = {}
    classes: list[type[errors.BackyError]] = [errors.BackyError]
    while classes:
        kind = classes.pop()
        if kind.__module__ == errors.__name__:
            found[kind.__name__] = kind.exit_code
        classes += kind.__subclasses__()
    return found


def folders() -> set[str]:
    """Each folder of modules, and each module that is in none."""
    root = Path(backy.__file__).parent
    found = {path.relative_to(root).with_suffix("").parts[0] for path in root.glob("**/*.py")}
    return found - {"__init__"}


def layers() -> list[str]:
    """What import-linter holds, the highest first."""
    project = tomllib.loads((markdown.PROJECT / "pyproject.toml").read_text())
    contracts = project["tool"]["importlinter"]["contracts"]
    (contract,) = [each for each in contracts if each["id"] == "layers"]
    return re.findall(r"\w+", " ".join(contract["layers"]))


def listed() -> list[str]:
    """The first column of the table of folders."""
    return [row["folder"] for row in markdown.table(markdown.section(ARCHITECTURE, "Layers"))]


def test_every_folder_is_in_the_table_and_no_other() -> None:
    assert sorted(listed()) == sorted(folders())


def test_the_table_has_the_folders_in_the_order_of_the_layers() -> None:
    assert listed() == [each for each in layers() if each in folders()]


def test_the_exit_code_of_every_error_is_documented() -> None:
    rows = markdown.table(markdown.section(ARCHITECTURE, "Errors and exit codes"))
    assert {row["class"]: int(row["code"]) for row in rows} == exit_codes()


def test_the_readme_lists_all_exit_codes() -> None:
    rows = markdown.table(markdown.section(README, "Exit codes"))
    # Nothing raises the base class itself; the first two are not errors of ours, 70 is a bug.
    assert {int(row["code"]) for row in rows} == {0, 2, 70, *exit_codes().values()} - {1}


def named_modules() -> list[object]:
    """Each module that a page names, such as `operations.heal`, or something in a module."""
    names = "|".join(sorted(folders()))
    pattern = re.compile(rf"`(?:backy\.)?((?:{names})(?:[./](?!json|py`)\w+)+?)(?:\.py)?`")
    return [
        pytest.param(name.replace("/", "."), id=f"{page.name}:{name}")
        for page in markdown.documents()
        for name in sorted(set(pattern.findall(page.read_text())))
    ]


@pytest.mark.parametrize("name", named_modules())
def test_a_module_that_a_page_names_exists(name: str) -> None:
    module, _, attribute = f"backy.{name}".rpartition(".")
    try:
        import_module(f"{module}.{attribute}")
    except ModuleNotFoundError:
        assert hasattr(import_module(module), attribute)
