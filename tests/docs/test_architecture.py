"""ARCHITECTURE.md and README.md say what the code says: modules, exit codes."""

from pathlib import Path

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


def test_the_list_of_modules_is_complete_and_names_no_other() -> None:
    root = Path(backy.__file__).parent
    modules = {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in root.glob("**/*.py")
    }
    listed = [row["module"] for row in markdown.table(markdown.section(ARCHITECTURE, "Layers"))]
    assert sorted(listed) == sorted(modules - {"__init__"})


def test_the_exit_code_of_every_error_is_documented() -> None:
    rows = markdown.table(markdown.section(ARCHITECTURE, "Errors and exit codes"))
    assert {row["class"]: int(row["code"]) for row in rows} == exit_codes()


def test_the_readme_lists_all_exit_codes() -> None:
    rows = markdown.table(markdown.section(README, "Exit codes"))
    # Nothing raises the base class itself; the first two are not errors of ours, 70 is a bug.
    assert {int(row["code"]) for row in rows} == {0, 2, 70, *exit_codes().values()} - {1}
