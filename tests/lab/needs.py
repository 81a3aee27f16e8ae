"""What a test needs of the machine.  It is skipped where that is missing, and fails in CI."""

import os
import shutil
from pathlib import Path

import pytest


def absent(*programs: str) -> str | None:
    """Which of these programs are not installed; None where all are."""
    names = [program for program in programs if not shutil.which(program)]
    return f"{', '.join(names)} not installed" if names else None


def no_mounts() -> str | None:
    """Why this process can neither mount a file system nor make a block device; None if it can."""
    if os.geteuid() != 0:
        return "only root can mount a file system"
    return None if Path("/dev/loop-control").exists() else "there are no loop devices"


def need(*reasons: str | None) -> None:
    """Skip the test for the first of these reasons that there is."""
    for reason in reasons:
        if reason:
            pytest.skip(reason)
