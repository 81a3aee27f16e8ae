"""Each limit on the size of the code is held, and what is over it is named with its place."""

from pathlib import Path

import pytest

from tools import check_sizes
from tools.measure_style import measure_codebase

LINE = "x = 1\n"
ONE_LINE = "def f() -> None: ...\n"


def function(sloc: int) -> str:
    return "def f() -> None:\n" + "    x = 1\n" * (sloc - 1)


def findings(root: Path, source: str, tests: str | None = None) -> list[str]:
    """What is found in a checkout of one module and one file of tests; enough of them if None."""
    tests = LINE * 2 * source.count("\n") if tests is None else tests
    (root / "src/package").mkdir(parents=True, exist_ok=True)
    (root / "tests").mkdir()
    (root / "src/package/__init__.py").write_text("")
    (root / "src/package/module.py").write_text(source)
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
            "src/package/module.py: file of 351 SLOC, at most 350",
            id="file",
        ),
        pytest.param(
            "class C:\n" + "    x = 1\n" * 200,
            "src/package/module.py:1 C: class of 201 SLOC, at most 200",
            id="class",
        ),
        pytest.param(
            ONE_LINE * 19 + function(51),
            "src/package/module.py:20 f: function of 51 SLOC, at most 50",
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
            "src/package/module.py:2 f: parameters or return value without a type",
            id="typed",
        ),
    ],
)
def test_what_is_just_over_a_limit_is_named(tmp_path: Path, source: str, finding: str) -> None:
    assert finding in findings(tmp_path, source)


def test_too_few_tests_are_found(tmp_path: Path) -> None:
    found = findings(tmp_path, LINE * 100, LINE * 149)
    assert found == ["all tests: 149 SLOC, at least 1.5 times the 100 of the source"]


def test_too_much_source_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_sizes, "MAX_SOURCE", 70)
    assert findings(tmp_path, LINE * 71) == ["all source but plug-ins: 71 SLOC, at most 70"]


def test_plug_ins_have_a_limit_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_sizes, "MAX_SOURCE", 70)
    monkeypatch.setattr(check_sizes, "MAX_PLUG_INS", 20)
    folder = tmp_path / "src/package/backy/sources"
    folder.mkdir(parents=True)
    (folder / "tape.py").write_text(LINE * 21)
    (folder / "file.py").write_text(LINE * 3)
    assert findings(tmp_path, LINE * 67, LINE * 200) == ["all plug-ins: 21 SLOC, at most 20"]


@pytest.mark.parametrize(("source", "status"), [(LINE, 0), (LINE * 351, 1)])
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
    assert "| codebase | files | SLOC |" in capsys.readouterr().out
