"""What every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.lab.reflink import missing, reflink_file_system

pytest_plugins = ["tests.no_skip", "tests.lab.ceph"]

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
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def reflink_folder(request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty file system whose files can share extents: XFS, or what the parameter says.

    @pytest.mark.parametrize("reflink_folder", ["xfs", "btrfs"], indirect=True) runs a test on both.
    """
    kind = getattr(request, "param", "xfs")
    if reason := missing(kind):
        pytest.skip(reason)
    with reflink_file_system(kind) as folder:
        yield folder
