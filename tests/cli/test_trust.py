"""Root obeys only what root alone may write: configurations, hooks, sources that are remembered."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.runner import MIB, Backy, image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses")

ALICE = 1000
SECRET = b"a secret of root's " * 100_000


COMMANDS = ["verify", "scrub", "restore"]  # those that heal


def owned_by_alice(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.lchown(path, ALICE, ALICE)


def give_to_a_group(path: Path) -> None:
    os.chown(path, 0, ALICE)
    path.chmod(0o660)


SHARED: dict[str, Callable[[Path], object]] = {
    "alices-repository": owned_by_alice,
    "alices-base": lambda root: os.chown(root.parent, ALICE, 0),
    "alices-record": lambda root: os.chown(root / "repository.json", ALICE, 0),
    "folder-of-all": lambda root: root.chmod(0o777),
    "record-of-a-group": lambda root: give_to_a_group(root / "repository.json"),
}


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    path.chmod(0o600)
    return path


def poison(backy: Backy, secret: Path) -> Path:
    """Have vm1, which has a damaged block, remember the secret as its source."""
    root = backy.base / "vm1"
    record = json.loads((root / "repository.json").read_text())
    record["source"] = {"type": "file", "disks": {"vda": str(secret)}}
    (root / "repository.json").write_text(json.dumps(record))
    return root


def has_secret(folder: Path) -> bool:
    return any(SECRET[:20] in path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("shared", SHARED)
def test_root_reads_no_source_that_somebody_else_may_have_chosen(
    aged: Backy, secret: Path, shared: str
) -> None:
    root = poison(aged, secret)
    revisions = aged.revisions("vm1")
    aged.damage("vm1", revisions[-1], 1)
    SHARED[shared](root)
    said = aged.refuses(3, "backup", "vm1")
    assert "vm1: its remembered source is not used by root: " in said.message
    assert " may write " in said.message
    for command in COMMANDS if shared == "alices-repository" else COMMANDS[:1]:
        target = [root / "../new"] if command == "restore" else []
        heard = aged.refuses(6, command, "vm1", *target)
        assert "The source could not be asked: vm1: its remembered source" in heard.before
    assert aged.revisions("vm1") == revisions
    assert not has_secret(root)
    aged.ok("backup", "vm1", "--source", image(root / "../mine.img", b"x" * MIB))


def test_healing_keeps_nothing_of_a_source_that_has_something_else(
    aged: Backy, secret: Path
) -> None:
    root = poison(aged, secret)  # by root, so it is asked
    aged.damage("vm1", aged.revisions("vm1")[-1], 1)
    for command in COMMANDS:
        target = [root / "../new"] if command == "restore" else []
        assert "could not be asked" not in aged.refuses(6, command, "vm1", *target).before
        assert not has_secret(root)


@pytest.fixture
def configured(backy: Backy, tmp_path: Path) -> Path:
    """backy.yaml with vm1, whose exec source is a program, and hooks; jobs.d/vm2.yaml."""
    for name in ("hook", "callback", "source"):
        path = tmp_path / "programs" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\necho {name} >>{tmp_path}/ran\n")
        path.chmod(0o755)
    disk = image(tmp_path / "disk.img", b"x" * MIB)
    programs = tmp_path / "programs"
    answer = json.dumps({"disks": {"vda": {"read": str(disk)}}})
    (programs / "source").write_text(f"#!/bin/sh\n[ $1 = release ] || echo '{answer}'\n")
    job = {"schedule": "often", "source": {"type": "file", "filename": str(disk)}}
    document = {
        "global": {
            "base-dir": str(backy.base),
            "backup-completed-callback": str(programs / "callback"),
        },
        "schedules": {"often": {"daily": {"interval": "1d", "keep": 9}}},
        "jobs": {
            "vm1": job | {"hooks": {"before-snapshot": [str(programs / "hook")]}},
            "vm3": job | {"source": {"type": "exec", "command": [str(programs / "source")]}},
            "vm4": job | {"hooks": {"after-snapshot": [str(programs / "hook")]}},
            "vm5": job | {"hooks": {"after-backup": [str(programs / "hook")]}},
        },
    }
    (tmp_path / "etc" / "jobs.d").mkdir(parents=True)
    (tmp_path / "etc" / "backy.yaml").write_text(json.dumps(document))
    (tmp_path / "etc" / "jobs.d" / "vm2.yaml").write_text(json.dumps({"vm2": job}))
    return tmp_path / "etc" / "backy.yaml"


def ran(tmp_path: Path) -> list[str]:
    path = tmp_path / "ran"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("which", ["etc", "etc/backy.yaml"])
def test_root_refuses_a_configuration_that_others_may_write(
    backy: Backy, configured: Path, tmp_path: Path, which: str
) -> None:
    os.chown(tmp_path / which, ALICE, 0)
    for command in (["backup", "vm1"], ["config", "check"], ["jobs"], ["run", "vm1"], ["list"]):
        text = Configured(backy.base).run("--config", configured, *command)
        assert text.code == 3, text
        assert f"user {ALICE} may write {tmp_path / which}" in text.err + text.out
    assert ran(tmp_path) == []


class Configured(Backy):
    """Without --base-dir, since the configuration has one."""

    def command(self, *arguments: str | Path) -> list[str]:
        words = super().command(*arguments)
        at = words.index("--base-dir")
        return words[:at] + words[at + 2 :]


@pytest.mark.parametrize("which", ["etc/jobs.d", "etc/jobs.d/vm2.yaml"])
def test_root_refuses_an_included_file_that_others_may_write_and_no_other_job(
    backy: Backy, configured: Path, tmp_path: Path, which: str
) -> None:
    os.chown(tmp_path / which, 0, ALICE)
    (tmp_path / which).chmod(0o775)
    expected = f"group {ALICE} may write {tmp_path / which}"
    said = backy.refuses(3, "--config", configured, "backup", "vm2")
    assert expected in said.message
    assert expected in backy.run("--config", configured, "config", "check").out
    backy.ok("--config", configured, "backup", "vm1")


@pytest.mark.parametrize(
    ("which", "job", "code"),
    [("hook", "vm1", 11), ("hook", "vm4", 11), ("source", "vm3", 4), ("programs", "vm3", 4)],
)
def test_root_runs_no_program_that_others_may_write(
    backy: Backy, configured: Path, tmp_path: Path, which: str, job: str, code: int
) -> None:
    path = tmp_path / "programs" / ("" if which == "programs" else which)
    path.chmod(0o777)
    said = backy.refuses(code, "--config", configured, "backup", job)
    assert f"everybody may write {path}" in said.message
    assert which not in ran(tmp_path)
    assert backy.revisions(job) == []


@pytest.mark.parametrize(("which", "job"), [("hook", "vm5"), ("callback", "vm4")])
def test_a_hook_after_the_backup_that_others_may_write_fails_and_does_not_run(
    backy: Backy, configured: Path, tmp_path: Path, which: str, job: str
) -> None:
    (tmp_path / "programs" / which).chmod(0o777)
    said = backy.ok("--config", configured, "backup", job)
    assert f"everybody may write {tmp_path}/programs/{which}" in said.err
    assert which not in ran(tmp_path)
    assert len(backy.revisions(job)) == 1
