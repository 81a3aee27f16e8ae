"""Every verb, as it is said to a sandbox."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.sandbox import Outcome, Sandbox

ALL: dict[str, tuple[str, ...]] = {
    "init": ("init",),
    "jobs": ("list",),
    "jobs-json": ("list", "--json"),
    "list": ("list", "vm1"),
    "list-json": ("list", "vm1", "--json"),
    "find": ("find", "vm1"),
    "diff": ("diff", "vm1", "1", "0"),
    "history": ("history", "vm1"),
    "reports": ("reports",),
    "reports-json": ("reports", "--json"),
    "show": ("reports", "show", "vm1", "@report"),
    "restore": ("restore", "vm1", "@target"),
    "keep-going": ("restore", "vm1", "@target", "--keep-going"),
    "dry-run": ("restore", "vm1", "@target", "--keep-going", "--dry-run"),
    "restore-all": ("restore", "vm1", "@folder", "--keep-going"),
    "verify": ("verify", "vm1"),
    "scrub": ("scrub", "vm1"),
    "scrub-all": ("scrub",),
    "tag": ("tag", "vm1", "+weekly"),
    "backup": ("backup", "vm1"),
    "undo": ("undo", "vm1"),
    "remove": ("remove", "vm1", "-r", "first"),
    "purge": ("purge", "vm1"),
    "purge-job": ("--config", "@empty", "purge", "--job", "vm1"),
    "delete": ("reports", "delete", "vm1", "@report"),
    "delete-healed": ("reports", "delete", "vm1", "--healed"),
    "configured-backup": ("--config", "@config", "backup", "vm1"),
    "expire": ("--config", "@config", "expire", "vm1"),
    "pause": ("--config", "@config", "pause", "vm1"),
    "resume": ("--config", "@config", "resume", "vm1"),
    "run": ("--config", "@config", "run", "vm1"),
    "check": ("--config", "@config", "check"),
    "status": ("--config", "@config", "status"),
    "top": ("--config", "@config", "top"),
    "configured-jobs": ("--config", "@config", "jobs"),
    "config": ("--config", "@config", "config", "check"),
}


def only(folder: Path) -> str:
    """The name of the only thing in a folder."""
    (path,) = folder.iterdir()
    return path.name


def real(sandbox: Sandbox, place: str) -> str:
    """A place with what "@" stands for."""
    newest = sandbox.revisions()[-1].name
    trash = sandbox.neighbour / "trash"
    batch = only(trash)
    chunk = min((sandbox.neighbour / "chunks").glob("*/*"), default=Path("ab/chunk"))
    words = {
        "@newest": newest,
        "@batch": batch,
        "@removed": only(trash / batch),
        "@report": only(sandbox.neighbour / "quarantine"),
        "@ab": chunk.parent.name,
        "@chunk": chunk.name,
        "@target": f"{sandbox.folder}/target",
        "@folder": f"{sandbox.folder}/targets",
        "@config": f"{sandbox.folder}/backy.yaml",
        "@empty": f"{sandbox.folder}/empty.yaml",
    }
    for word, text in words.items():
        place = place.replace(word, text)
    return place


def prepare(sandbox: Sandbox) -> None:
    """Make what some of the verbs want to find: a configuration, and a folder to restore to."""
    source = {"type": "file", "disks": {"vda": f"{sandbox.folder}/source.img"}}
    settings = {
        "global": {"base-dir": f"{sandbox.base}", "socket": f"{sandbox.folder}/socket"},
        "schedules": {"daily": {"daily": {"interval": "1d", "keep": 1}}},
        "jobs": {"vm1": {"schedule": "daily", "source": source}},
    }
    (sandbox.folder / "backy.yaml").write_text(json.dumps(settings))
    (sandbox.folder / "empty.yaml").write_text("{}")
    (sandbox.folder / "targets").mkdir()


def say(sandbox: Sandbox, name: str, meanwhile: Sequence[str | int | Path] = ("backy",)) -> Outcome:
    """Run one of ALL."""
    words = [real(sandbox, argument) for argument in ALL[name]]
    return sandbox.backy(*words, meanwhile=meanwhile)
