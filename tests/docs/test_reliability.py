"""docs/reliability.md promises what is tested, and names the tests."""

import re

import pytest

from tests.docs import markdown

TEXT = (markdown.PROJECT / "docs" / "reliability.md").read_text()
TESTED = markdown.table(markdown.section(TEXT, "How it is tested"))
PROMISES = re.findall(r"^(\d+)\. ", markdown.section(TEXT, "What is promised"), re.MULTILINE)
NAMED = [name for row in TESTED for name in re.findall(r"tests/[\w/.]+", row["tests"])]


@pytest.mark.parametrize("name", NAMED)
def test_a_test_that_the_page_names_exists(name: str) -> None:
    assert (markdown.PROJECT / name).exists()


@pytest.mark.parametrize("promise", PROMISES)
def test_a_promise_has_a_test(promise: str) -> None:
    assert any(promise in row["promise"].split(", ") for row in TESTED)


def test_every_test_of_faults_is_named() -> None:
    faults = (markdown.PROJECT / "tests" / "faults").glob("test_*.py")
    assert {f"tests/faults/{path.name}" for path in faults} <= set(NAMED)


def test_promises_are_numbered_one_after_the_other() -> None:
    assert [str(number + 1) for number in range(len(PROMISES))] == PROMISES


def test_every_variable_of_the_fault_tests_is_explained_and_no_other() -> None:
    tests = markdown.PROJECT / "tests"
    files = [*tests.glob("faults/*.py"), *tests.glob("fuzz/*.py"), tests / "conftest.py"]
    read = r'environ\.get\("(BACKY_\w+|HYPOTHESIS_PROFILE)"'
    used = {name for path in files for name in re.findall(read, path.read_text())}
    variables = markdown.table(TEXT.split("or repeat one:")[1])
    assert {row["variable"].partition("=")[0] for row in variables} == used
