"""With BACKY_NO_SKIP=1 nothing is skipped in silence."""

import pytest

SKIPS = {
    "in the test": """
        import pytest
        def test_it():
            pytest.skip("no disk")
    """,
    "by a mark": """
        import pytest
        @pytest.mark.skipif(True, reason="no disk")
        def test_it():
            raise AssertionError
    """,
    "in a fixture": """
        import pytest
        @pytest.fixture
        def disk():
            pytest.skip("no disk")
        def test_it(disk):
            raise AssertionError
    """,
    "while torn down": """
        import pytest
        @pytest.fixture
        def disk():
            yield
            pytest.skip("no disk")
        def test_it(disk):
            pass
    """,
    "as a whole module": """
        import pytest
        pytest.skip("no disk", allow_module_level=True)
    """,
    "for want of a library": """
        import pytest
        pytest.importorskip("no_such_library", reason="no disk")
    """,
    "by unittest": """
        import unittest
        class Test(unittest.TestCase):
            def test_it(self):
                self.skipTest("no disk")
    """,
}
# Without the switch pytest does not even count this one.
SUBTEST = """
    import pytest
    def test_it(subtests):
        with subtests.test("part"):
            pytest.skip("no disk")
"""
BY_PLACE = [pytest.param(text, id=place) for place, text in SKIPS.items()]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> "Run":
    return Run(pytester, monkeypatch)


class Run:
    """A pytest of its own, with the plugin, on one file of tests."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self.monkeypatch = monkeypatch

    def __call__(self, text: str, switch: str | None, *arguments: str) -> pytest.RunResult:
        if switch is None:
            self.monkeypatch.delenv("BACKY_NO_SKIP", raising=False)
        else:
            self.monkeypatch.setenv("BACKY_NO_SKIP", switch)
        self.pytester.makepyfile(text)
        return self.pytester.runpytest("-p", "tests.no_skip", "-p", "no:randomly", *arguments)


@pytest.mark.parametrize("text", [*BY_PLACE, pytest.param(SUBTEST, id="in a subtest")])
def test_a_skip_fails_the_run_and_tells_its_reason_when_the_switch_is_on(
    run: Run, text: str
) -> None:
    result = run(text, "1")
    assert result.ret != pytest.ExitCode.OK
    assert "skipped" not in result.parseoutcomes()
    result.stdout.fnmatch_lines(["*BACKY_NO_SKIP=1 and *no disk*"])


@pytest.mark.parametrize("switch", [None, "", "0"])
@pytest.mark.parametrize("text", BY_PLACE)
def test_a_skip_stays_a_skip_when_the_switch_is_off(
    run: Run, text: str, switch: str | None
) -> None:
    outcomes = run(text, switch).parseoutcomes()
    assert outcomes["skipped"] == 1
    assert not {"failed", "error", "errors"} & outcomes.keys()


def test_the_switch_works_in_the_workers_of_xdist(run: Run) -> None:
    assert run(SKIPS["by a mark"], "1", "-n", "1").parseoutcomes() == {"errors": 1}


def test_an_expected_failure_is_not_a_skip(run: Run) -> None:
    text = """
        import pytest
        @pytest.mark.xfail(reason="known")
        def test_it():
            raise AssertionError
    """
    assert run(text, "1").parseoutcomes() == {"xfailed": 1}


def test_a_run_without_skips_is_not_touched(run: Run) -> None:
    assert run("def test_it(): pass", "1").parseoutcomes() == {"passed": 1}
