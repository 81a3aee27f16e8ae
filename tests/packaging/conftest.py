"""The Debian package, built once in a run of the tests, and roots to install it in."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.lab.needs import absent, need
from tests.packaging import root
from tests.packaging.root import Root

PROJECT = Path(__file__).parents[2]
BUILT_FROM = (
    "CHANGELOG.md", "LICENSE", "README.md", "contrib", "docs", "packaging", "pyproject.toml",
    "requirements", "src", "tools",
)  # fmt: skip
Once = Callable[[str, Callable[[Path], object]], Path]
EPOCH = 1_700_000_000


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder by its name, if no other worker of this run has made it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder = shared / f"packaging-{name}"
        with (shared / f"packaging-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                new = shared / f"packaging-{name}.new"
                shutil.rmtree(new, ignore_errors=True)
                fill(new)
                new.rename(folder)
        return folder

    return make


def build_twice(folder: Path) -> None:
    """Build the package in two places, and with all that may differ between two machines.

    Both are built without the network, from a folder with the locked wheels.
    """
    folder.mkdir()
    copy = folder / "elsewhere" / "backy"
    copy.mkdir(parents=True)
    for name in BUILT_FROM:
        part = PROJECT / name
        if part.is_dir():
            shutil.copytree(part, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(part, copy / name)
    wheels = folder / "wheels"
    fetch_wheels(wheels)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "TMPDIR": str(folder)}
    with (
        start_build(PROJECT, folder / "one", 0o022, offline | {"TZ": "UTC"}) as one,
        start_build(copy, folder / "two", 0o077, offline | {"TZ": "Asia/Tokyo"}) as two,
    ):
        said = [build.communicate()[0] for build in (one, two)]
    (folder / "said").write_text("".join(said))


def fetch_wheels(folder: Path) -> None:
    """Have the locked wheels in a folder, those for the distribution's Python."""
    tell = ["/usr/bin/python3", "-c", "import sys; print(sys.version_info.minor)"]
    minor = subprocess.run(tell, check=True, capture_output=True, text=True).stdout.strip()
    command = [sys.executable, "-m", "pip", "-qq", "download", "--require-hashes", "--no-deps"]
    command += ["--requirement", str(PROJECT / "requirements/run.txt"), "--dest", str(folder)]
    command += ["--python-version", f"3.{minor}", "--only-binary", ":all:"]
    subprocess.run(command, check=True)


def start_build(
    project: Path, target: Path, umask: int, environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    """Start building the package of `project` into `target`."""
    return subprocess.Popen(
        [project / "tools/make-deb", sys.executable, target],
        env=os.environ | {"SOURCE_DATE_EPOCH": str(EPOCH)} | dict(environment),
        umask=umask,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="session")
def builds(once: Once) -> list[Path]:
    """The package, from two builds of the same source."""
    need(absent("dpkg-deb"))
    folder = once("builds", build_twice)
    packages = [*folder.glob("one/*.deb"), *folder.glob("two/*.deb")]
    assert len(packages) == 2, (folder / "said").read_text()
    return packages


@pytest.fixture(scope="session")
def deb(builds: list[Path]) -> Path:
    """The package."""
    return builds[0]


@pytest.fixture(scope="session")
def fields(deb: Path) -> dict[str, str]:
    """What the package says of itself."""
    said = subprocess.run(["dpkg-deb", "-f", deb], capture_output=True, text=True, check=True)
    return dict(re.findall(r"(?m)^([\w-]+): (.*)$", said.stdout))


@pytest.fixture(scope="session")
def depends(fields: dict[str, str]) -> list[str]:
    """The packages that it says to depend on."""
    return list(dict.fromkeys(re.findall(r"(?:^|, )([\w.+-]+)", fields["Depends"])))


@pytest.fixture(scope="session")
def installed_root(once: Once, depends: list[str], deb: Path) -> Root:
    """What is essential, the package, and what it depends on. Not to be changed."""
    return made("installed", once, lambda folder: root.make(folder, depends).install(deb))


@pytest.fixture(scope="session")
def systemd_root(once: Once, depends: list[str], deb: Path) -> Root:
    """The same with systemd, which does not run. Not to be changed."""
    packages = [*depends, "dbus", "systemd", "util-linux"]
    return made("systemd", once, lambda folder: root.make(folder, packages).install(deb))


def made(name: str, once: Once, fill: Callable[[Path], object]) -> Root:
    if os.geteuid() != 0:
        pytest.skip("only root can change its root")
    return Root(once(name, fill))
