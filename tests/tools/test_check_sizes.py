"""Each limit on the size of the code is held, and what is over it is named with its place."""

from pathlib import Path

import pytest

from tests.docs import markdown
from tools import check_sizes
from tools.measure_style import Codebase, Module, measure_codebase

LINE = "x = 1\n"
ONE_LINE = "def f() -> None: ...\n"


def function(sloc: int) -> str:
    return "def f() -> None:\n" + "    x = 1\n" * (sloc - 1)


def findings(root: Path, source: str, tests: str | None = None) -> list[str]:
    """What is found in a checkout of one module and one file of tests; enough of them if None."""
    tests = LINE * 2 * source.count("\n") if tests is None else tests
    (root / "src/backy").mkdir(parents=True, exist_ok=True)
    (root / "tests").mkdir()
    (root / "src/backy/__init__.py").write_text("")
    (root / "src/backy/units.py").write_text(source)
    (root / "tests/test_module.py").write_text(tests)
    return list(check_sizes.findings(measure_codebase(root), root))


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("", id="no code"),
        pytest.param(LINE * 350, id="file"),
        pytest.param("class C:\n" + "    x = 1\n" * 199, id="class"),
        pytest.param(ONE_LINE * 19 + function(50), id="function"),
        pytest.param(ONE_LINE * 9 + function(20), id="p90"),
        pytest.param(function(6), id="median"),
    ],
)
def test_what_is_just_within_every_limit_passes(tmp_path: Path, source: str) -> None:
    assert findings(tmp_path, source) == []


@pytest.mark.parametrize(
    ("source", "finding"),
    [
        pytest.param(
            LINE * 351,
            "src/backy/units.py: file of 351 SLOC, at most 350",
            id="file",
        ),
        pytest.param(
            "class C:\n" + "    x = 1\n" * 200,
            "src/backy/units.py:1 C: class of 201 SLOC, at most 200",
            id="class",
        ),
        pytest.param(
            ONE_LINE * 19 + function(51),
            "src/backy/units.py:20 f: function of 51 SLOC, at most 50",
            id="function",
        ),
        pytest.param(
            ONE_LINE * 9 + function(21),
            "all functions: one in ten has 21 SLOC or more, at most 20",
            id="p90",
        ),
        pytest.param(
            function(7),
            "all functions: median of 7 SLOC, at most 6",
            id="median",
        ),
        pytest.param(
            "class C:\n    def f(self, a: int, b) -> int: ...\n",
            "src/backy/units.py:2 f: parameters or return value without a type",
            id="typed",
        ),
    ],
)
def test_what_is_just_over_a_limit_is_named(tmp_path: Path, source: str, finding: str) -> None:
    assert finding in findings(tmp_path, source)


def test_too_few_tests_are_found(tmp_path: Path) -> None:
    found = findings(tmp_path, LINE * 100, LINE * 149)
    assert found == ["all tests: 149 SLOC, at least 1.5 times the 100 of the source"]


def source_of(**sizes: int) -> Codebase:
    """A codebase of files in the package, "/" in whose names is "__", with so many SLOC each."""
    modules = [
        Module(f"src/backy/{name.replace('__', '/')}.py", sloc, 0, [], [], 0, 0, 0, 0)
        for name, sloc in sizes.items()
    ]
    return Codebase("", modules, [Module("tests/test_all.py", 10**6, 0, [], [], 0, 0, 0, 0)], None)


BUDGETS = {budget.name: budget.at_most for budget in check_sizes.BUDGETS}
IN_BUDGET = {
    "model__new": "core",
    "stores__new": "core",
    "stores__objects__new": "objects",
    "operations__heal": "core",
    "operations__drill": "new operations",
    "policy__new": "config, policy, monitoring",
    "sources__new": "sources",
    "web__new": "web",
}


@pytest.mark.parametrize(("file", "budget"), IN_BUDGET.items(), ids=IN_BUDGET)
def test_a_budget_that_is_exceeded_is_named(file: str, budget: str) -> None:
    most = BUDGETS[budget]
    assert list(check_sizes.over_budget(source_of(**{file: most}).source)) == []
    assert list(check_sizes.over_budget(source_of(**{file: most + 1}).source)) == [
        f"{budget}: {most + 1} SLOC, at most {most}"
    ]


@pytest.mark.parametrize("file", ["new", "new__module", "modelling__new"])
def test_a_module_in_no_budget_is_named(file: str) -> None:
    path = f"src/backy/{file.replace('__', '/')}.py"
    assert list(check_sizes.findings(source_of(**{file: 1}), Path())) == [
        f"{path}: in no budget; place it in tools/check_sizes.py"
    ]


def test_the_budgets_are_those_of_the_decision_and_add_up() -> None:
    text = (markdown.PROJECT / "docs/decisions/0011-size.md").read_text()
    rows = {row["budget"]: number(row["at most"]) for row in markdown.table(text)}
    assert rows.pop("together") == check_sizes.MAX_SOURCE == sum(BUDGETS.values())
    assert rows == BUDGETS


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_what_is_spent_of_each_budget_is_told() -> None:
    rows = check_sizes.budget_rows(source_of(units=1000, model__names=200, web__page=34).source)
    spent = {name: (number(sloc), number(most)) for name, sloc, most in rows}
    assert spent.pop("core") == (1200, BUDGETS["core"])
    assert spent.pop("web") == (34, BUDGETS["web"])
    assert spent.pop("together") == (1234, sum(BUDGETS.values()))
    assert {sloc for sloc, _ in spent.values()} == {0}


@pytest.mark.parametrize(
    ("source", "warning"),
    [
        pytest.param(LINE * 280, None, id="file of 80 %"),
        pytest.param(
            LINE * 281,
            "warning: src/backy/units.py: file of 281 SLOC of 350; plan a split",
            id="file",
        ),
        pytest.param(LINE * 351, None, id="file over the limit"),
        pytest.param(
            "class C:\n" + "    x = 1\n" * 160,
            "warning: src/backy/units.py:1 C: class of 161 SLOC of 200; plan a split",
            id="class",
        ),
        pytest.param(
            ONE_LINE * 19 + function(41),
            "warning: src/backy/units.py:20 f: function of 41 SLOC of 50; plan a split",
            id="function",
        ),
    ],
)
def test_what_is_near_a_limit_is_a_warning_before_it_is_an_error(
    tmp_path: Path, source: str, warning: str | None
) -> None:
    findings(tmp_path, source)
    warnings = list(check_sizes.warnings(measure_codebase(tmp_path)))
    assert warnings == ([warning] if warning else [])


@pytest.mark.parametrize(("source", "status"), [(LINE, 0), (LINE * 300, 0), (LINE * 351, 1)])
def test_the_row_is_printed_and_the_status_tells(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    status: int,
) -> None:
    findings(tmp_path, source)
    monkeypatch.setattr("sys.argv", ["check_sizes", str(tmp_path)])
    assert check_sizes.main() == status
    printed = capsys.readouterr().out
    assert "| codebase | files | SLOC |" in printed
    assert ("warning: " in printed) == (source == LINE * 300)


def test_what_a_restore_depends_on_is_counted_by_its_imports() -> None:
    needed = ["stores__blocks", "targets__device", "repository__repository", "system__files"]
    others = ["operations__backup", "operations__scrub", "daemon__daemon", "sources__rbd"]
    sizes = {name: 10**number for number, name in enumerate(needed)} | dict.fromkeys(others, 10**5)
    assert check_sizes.needed_by_restore(source_of(**sizes).source) == 1111
