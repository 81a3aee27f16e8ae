"""Nobody but the owner can write to what backy makes, or read data in it, whatever the umask is."""

import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli.runner import SMALL, Backy, environment, image, wait_for
from tests.lab.dispositions import WITH_DEFAULTS

CONFIGURATION = """
global: {{socket: {folder}/run/socket, metrics-file: {folder}/metrics/backy.prom}}
schedules: {{default: {{hourly: {{interval: 1h, keep: 1}}}}}}
jobs: {{vm1: {{schedule: default, source: {{type: file, filename: {folder}/vm1.img}}}}}}
"""
VERBS = [
    "backup vm1 --store {store} --block-size 64KiB", "backup vm1", "restore vm1 {folder}/new.img",
    "restore vm1 {folder}/all/", "tag vm1 +new", "pause vm1", "resume vm1", "verify vm1", "scrub",
    "expire vm1", "remove vm1 -r first", "undo vm1", "remove vm1 -r first", "purge vm1",
    "backup vm1",
]  # fmt: skip
FILES = {
    ".img": 0o400,
    "restore.sh": 0o755,
    "backy.prom": 0o644,
    ".backy-base": 0o644,
}  # all others: 0600


@contextmanager
def masked(umask: int) -> Iterator[None]:
    """With this umask."""
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("installation", "umask"),
    [
        pytest.param("backy", 0, id="chunks-0"),
        pytest.param("backy", 0o077, id="chunks-077"),
        pytest.param("plain", 0o022, id="images-022"),
    ],
)
def test_every_file_and_folder_is_private_whatever_the_umask_is(
    request: pytest.FixtureRequest, installation: str, umask: int
) -> None:
    given_base: Backy = request.getfixturevalue(installation)
    folder = given_base.base.parent
    backy = Backy(folder / "with" / "parents" / "backups", given_base.store)
    config = folder / "backy.yaml"
    config.write_text(CONFIGURATION.format(folder=folder))
    image(folder / "vm1.img", SMALL[1])
    (folder / "all").mkdir()
    (folder / "metrics").mkdir()
    given = set(folder.rglob("*")) - {folder / "all"}
    with masked(umask):
        for number, verb in enumerate(VERBS):
            words = verb.format(folder=folder, store=backy.store).split()
            backy.ok("--config", config, *words)
            if number == 1:
                backy.damage("vm1", backy.revisions("vm1")[-1], 0)
            assert made(folder, given) > number
        command = [*WITH_DEFAULTS, *backy.command("--config", config, "daemon")]
        with subprocess.Popen(command, env=environment(), umask=umask) as daemon:
            wait_for((folder / "metrics" / "backy.prom").exists, "the daemon wrote its metrics")
            daemon.terminate()
    paths = {path.name for path in folder.rglob("*")}
    assert {"quarantine", "trash", "scrub.json", "status.json", "space.json", "new.img"} <= paths
    made(folder, given)


def made(folder: Path, given: set[Path]) -> int:
    """How many files and folders there are beside those `given`; each has to be private."""
    paths = [path for path in folder.rglob("*") if path not in given]
    for path in paths:
        status = path.lstat()
        mode = stat.S_IMODE(status.st_mode)
        assert not mode & 0o022, f"{path} has mode {mode:o}"
        if not stat.S_ISDIR(status.st_mode):
            allowed = [FILES[end] for end in FILES if path.name.endswith(end)]
            own = 0o600 if path.name == "new.img" or path.parent.name == "all" else None
            wanted = own or (allowed or [0o600])[0]
            assert mode == wanted or (wanted == 0o400 and mode in {0o444, 0o600}), (
                f"{path}: {mode:o}"
            )
    return len(paths)
