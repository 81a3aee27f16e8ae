"""Where the repositories and the daemon are: all that most commands need of a configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backy.config.plain_yaml import PlainYaml

BASE_DIR, SOCKET = Path("/srv/backy"), Path("/run/backy/backy.sock")  # by default
KEYS = {
    "backup-completed-callback", "base-dir", "io-class", "metrics-file", "metrics-listen", "nice",
    "socket", "status-file", "status-interval", "stop-timeout", "telnet-addrs", "telnet-port",
    "worker-limit",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SitePaths:
    """The folder with a repository for each job, and the daemon's socket."""

    base_dir: Path = BASE_DIR
    socket: Path = SOCKET


def absolute(path: Path) -> Path:
    """Return `path`. Raises ValueError unless it is absolute and printable."""
    if not path.is_absolute() or not str(path).isprintable():
        raise ValueError(f"{str(path)!r} is not an absolute path")
    return path


def read_paths(path: Path) -> SitePaths | None:
    """The paths in a main file, without the time that it takes to check all of its settings.

    None if there is any doubt: loader.read_global tells then what is wrong, if anything is.
    """
    file = PlainYaml(path, until="global")
    content = file.content.get("global")
    settings = {} if content is None else content
    if file.problems or not isinstance(settings, dict) or not settings.keys() <= KEYS:
        return None
    values = {name: settings.get(name) for name in ("base-dir", "socket")}
    texts = {name.replace("-", "_"): value for name, value in values.items() if value is not None}
    if not all(isinstance(value, str) for value in texts.values()):
        return None
    try:
        return SitePaths(**{name: absolute(Path(value)) for name, value in texts.items()})
    except ValueError:
        return None
