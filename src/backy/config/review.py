"""What a configuration says that is valid, but hardly meant. Reads folders, and changes nothing."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from backy.config.loader import KeyPath, Loaded, Problem
from backy.config.settings import Config
from backy.system.permissions import find_program

Warned = Iterator[tuple[str, KeyPath, str]]  # a job or "", the key in it, and the text
PathsOf = Callable[[dict[str, Any]], Mapping[str, Path | str]]
_PLACEHOLDER = "~ and $ are not replaced. Write an absolute path"


def warnings(loaded: Loaded, paths_of: PathsOf, base: Path | None = None) -> list[Problem]:
    """What somebody should look at, though backy can work with it. Only valid jobs count.

    `paths_of` gives the local files that the settings of a source name, by disk. `base` is the base
    directory that the user named instead of the configured one. Opens and runs nothing.
    """
    config = loaded.config
    used = base or config.global_.base_dir
    found = [*_base_dir(used), *_programs(config), *_disks(config, paths_of)]
    return [*(loaded.problem(*warned) for warned in found), *_unread(loaded)]


def _unread(loaded: Loaded) -> Iterator[Problem]:
    """Files that lie beside included ones, but do not fit the pattern."""
    for pattern in loaded.config.include:
        path = loaded.files[0].parent / pattern
        others = {*path.parent.glob("[!.]*.y*ml")} if "*" in path.name else set()
        for other in sorted(others.difference(loaded.files)):
            yield Problem(other, 1, "", f"it is not read: its name does not fit {pattern!r}")


def _base_dir(base: Path) -> Warned:
    if not base.is_dir():
        why = f"{base} does not exist. Is its file system mounted?"
        yield "", ("global", "base-dir"), why


def _programs(config: Config) -> Warned:
    """Hooks, and the programs of sources; each program once."""
    places: dict[str, tuple[str, KeyPath]] = {}
    if callback := config.global_.backup_completed_callback:
        places[str(callback)] = "", ("global", "backup-completed-callback")
    all_hooks = [("", config.hooks), *((name, job.hooks) for name, job in config.jobs.items())]
    for name, hooks in all_hooks:
        for event, of_event in hooks:
            for hook in of_event:
                place = name, ("hooks", event.replace("_", "-"))
                places.setdefault(hook.command[0], place)
    for name, job in config.jobs.items():
        if job.source["type"] == "exec":
            places.setdefault(job.source["command"][0], (name, ("source", "command")))
    for command, (name, keys) in places.items():
        if not find_program(command):
            yield name, keys, f"{command!r} does not exist, or is not executable"
        elif "/" in command and command[0] != "/":
            yield name, keys, f"{command!r} depends on the working directory; {_PLACEHOLDER}"


def _disks(config: Config, paths_of: PathsOf) -> Warned:
    """Paths of which nobody knows what they mean, and disks of two jobs."""
    users: dict[str, str] = {}
    for name, job in config.jobs.items():
        # Of the settings of a program, only the program knows which paths are disks.
        named = {} if job.source["type"] == "exec" else paths_of(job.source)
        paths = {disk: path for disk, path in named.items() if isinstance(path, Path)}
        for disk, path in paths.items():
            if not path.is_absolute() or "$" in str(path):
                why = f"'{path}' may be another file than was meant; {_PLACEHOLDER}"
                yield name, ("source", "disks", disk), why
        same = {os.path.realpath(path) for path in paths.values()}
        for what in same or {json.dumps(job.source, sort_keys=True)}:
            if (other := users.setdefault(what, name)) != name:
                # Settings may have a password.
                shown = what if what[0] == "/" else "source"
                yield name, ("source",), f"job {other} backs up the same {shown}"
