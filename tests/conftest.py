"""What every test may use."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.lab.needs import need
from tests.lab.reflink import missing, reflink_file_system
from tests.lab.volumes import Mounts
from tests.lab.watchdog import ends

# The suites are no test modules by name, and yet their assertions should say what they compared.
# They have to be named before anybody imports one.
pytest.register_assert_rewrite(
    "tests.conformance.codec",
    "tests.conformance.image",
    "tests.conformance.origin",
    "tests.conformance.source",
    "tests.conformance.store",
    "tests.conformance.target",
)

pytest_plugins = ["tests.no_skip", "tests.lab.ceph", "tests.lab.libvirt", "tests.lab.memory"]

# Every setting that matters is named, since Hypothesis has defaults of its own for a CI machine.
# A failure prints a line that repeats it, here and elsewhere.  No deadline and no limit on slow
# input: how long a test takes depends on what else the machine does.
settings.register_profile(
    "ci",
    max_examples=50,
    derandomize=False,
    print_blob=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("soak", settings.get_profile("ci"), max_examples=5000)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "ci")
settings.load_profile(PROFILE)

# A test that waits for ever must fail by its name: without this nobody learns which one it was.
LONGEST_SECONDS = 600 if PROFILE == "ci" else 12 * 3600


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """End a test that hangs."""
    with ends(LONGEST_SECONDS):
        yield


@pytest.fixture(scope="session")
def mounts() -> Iterator[Mounts]:
    """File systems for all tests, one of each kind: to make one takes longer than most tests."""
    with ExitStack() as stack:
        yield Mounts(stack)


@pytest.fixture
def reflink_folder(request: pytest.FixtureRequest, mounts: Mounts) -> Iterator[Path]:
    """An empty folder whose files can share extents: on XFS, or on what the parameter says.

    @pytest.mark.parametrize("reflink_folder", ["xfs", "btrfs"], indirect=True) runs a test on both.
    """
    with mounts.folder(getattr(request, "param", "xfs")) as folder:
        yield folder


@pytest.fixture
def own_reflink_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The same as a file system of its own, for who measures it, damages it or takes snapshots.

    Its device is the file "device" beside it.
    """
    kind = getattr(request, "param", "xfs")
    need(missing(kind))
    with reflink_file_system(kind) as folder:
        yield folder
