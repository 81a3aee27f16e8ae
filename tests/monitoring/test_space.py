"""The free space and inodes of real file systems, and what is remembered of them."""

import json
import os
from datetime import UTC, datetime, timedelta

import pytest

from backy.monitoring.space import Space, record_space, space
from tests.lab.volumes import Mounts

NOW = datetime(2026, 11, 23, 4, tzinfo=UTC)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_free_inodes_are_those_of_the_file_system_and_are_remembered(
    mounts: Mounts, kind: str
) -> None:
    with mounts.folder(kind) as base:
        os.sync()  # XFS frees the inodes of files that went before in the background
        now = os.statvfs(base)
        inodes = space(base).inodes
        assert inodes
        assert (inodes.capacity, inodes.free) == (now.f_files, now.f_favail)
        for hour in range(3):
            record_space(base, NOW + timedelta(hours=hour))
        recorded = space(base).inodes
        assert recorded
        assert [time for time, _ in recorded.samples] == [
            NOW + timedelta(hours=hour) for hour in range(3)
        ]


def test_a_file_system_that_makes_inodes_as_it_needs_them_has_none_to_count(mounts: Mounts) -> None:
    with mounts.folder("btrfs") as base:
        assert record_space(base, NOW).inodes is None
        assert space(base).inodes is None


def test_samples_of_before_inodes_were_counted_are_read(mounts: Mounts) -> None:
    with mounts.folder("ext4") as base:
        record_space(base, NOW)
        path = base / ".backy" / "space.json"
        record = json.loads(path.read_text())
        del record["inodes"]
        path.write_text(json.dumps(record))
        old = space(base)
        assert len(old.samples) == 1
        assert isinstance(old.inodes, Space)
        assert old.inodes.samples == ()
