"""The Debian package installs and runs where there is nothing but what it depends on."""

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import backy
from tests.cli.commands import COMMANDS
from tests.lab.watchdog import ends
from tests.packaging.conftest import PROJECT
from tests.packaging.root import Root

CONFIGURATION = Path("etc/backy/backy.yaml")
JOB = "vm1:\n  source: {type: file, disks: {vda: /images/vm1.img}}\n  schedule: default\n"


def with_image(root: Root) -> Root:
    """The same root, and in it the image of a machine."""
    (root.path / "images").mkdir()
    (root.path / "images/vm1.img").write_bytes(os.urandom(3 * 1024**2))
    return root


@pytest.fixture(scope="module")
def root(installed_root: Root, tmp_path_factory: pytest.TempPathFactory) -> Root:
    """One with the package installed, to be used by several tests."""
    return with_image(installed_root.copy(tmp_path_factory.mktemp("shared") / "root"))


@pytest.fixture
def own_root(installed_root: Root, tmp_path: Path) -> Root:
    """One with the package installed, to be changed."""
    return with_image(installed_root.copy(tmp_path / "root"))


def test_the_same_source_gives_the_same_package_byte_by_byte(builds: list[Path]) -> None:
    one, two = builds
    assert one.name == two.name
    assert one.read_bytes() == two.read_bytes()


def test_the_package_is_for_the_one_python_that_its_modules_are_compiled_for(
    fields: dict[str, str],
) -> None:
    python = [part for part in fields["Depends"].split(", ") if part.startswith("python3 ")]
    (least, below) = [tuple(map(int, re.findall(r"\d+", part)))[1:] for part in python]
    assert below == (least[0], least[1] + 1)
    assert fields["Architecture"] != "all"


def test_a_package_before_the_release_is_older_than_the_release(fields: dict[str, str]) -> None:
    assert fields["Version"].replace("~", "") == backy.__version__
    release = re.sub(r"(a|b|rc)\d+$", "", backy.__version__)
    expected = "lt" if release != backy.__version__ else "eq"
    subprocess.run(["dpkg", "--compare-versions", fields["Version"], expected, release], check=True)


@pytest.fixture(scope="session")
def content(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the package."""
    folder = tmp_path_factory.mktemp("content")
    subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
    return folder


def test_no_file_of_the_package_knows_where_it_was_built(content: Path, deb: Path) -> None:
    places = [str(PROJECT), str(deb.parents[1])]
    found = [
        str(path)
        for path in content.rglob("*")
        if path.is_file() and any(place.encode() in path.read_bytes() for place in places)
    ]
    assert found == []


def test_all_files_belong_to_root_and_nobody_else_may_change_them(deb: Path) -> None:
    listed = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True)
    for line in listed.stdout.splitlines():
        mode, owner, *_ = line.split()
        assert owner == "root/root"
        assert mode in {"-rw-r--r--", "-rwxr-xr-x", "drwxr-xr-x", "lrwxrwxrwx"}


def test_only_files_in_etc_are_configuration(content: Path, deb: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "-e", deb, tmp_path / "control"], check=True)
    kept = (tmp_path / "control/conffiles").read_text().split()
    assert kept == [f"/{path.relative_to(content)}" for path in (content / "etc").rglob("*.*ml")]


def test_every_command_has_its_manual_page(content: Path) -> None:
    pages = {path.name for path in (content / "usr/share/man/man1").iterdir()}
    words = [("backy", *name.split()) for name in COMMANDS]
    names = {" ".join(each[:length]) for each in words for length in range(1, len(each) + 1)}
    assert pages == {name.replace(" ", "-") + ".1.gz" for name in names}
    assert (content / "usr/share/man/man5/backy.yaml.5.gz").is_file()


def test_the_unit_is_that_of_contrib_and_starts_a_program_of_the_package(content: Path) -> None:
    unit = (content / "usr/lib/systemd/system/backy.service").read_text()
    assert unit == (PROJECT / "contrib/systemd/backy.service").read_text()
    assert "ExecStart=backy daemon\n" in unit
    assert (content / "usr/bin/backy").resolve() == content / "usr/lib/backy/bin/backy"


def test_it_installs_with_what_it_depends_on_and_nothing_else(root: Root) -> None:
    assert root.run("backy", "--version").stdout == f"backy {backy.__version__}\n"


def test_what_was_backed_up_by_the_installed_program_is_restored_by_it(root: Root) -> None:
    root.run("backy", "backup", "vm1", "--source", "/images/vm1.img")
    root.run("backy", "restore", "vm1", "/images/restored.img")
    images = root.path / "images"
    assert (images / "restored.img").read_bytes() == (images / "vm1.img").read_bytes()


def test_backy_restore_is_the_script_of_the_repositories_and_restores_without_backy(
    content: Path, own_root: Root
) -> None:
    script = PROJECT / "src/backy/repository/restore.sh"
    assert (content / "usr/bin/backy-restore").read_bytes() == script.read_bytes()
    own_root.run("backy", "backup", "vm1", "--source", "/images/vm1.img")
    images = own_root.path / "images"
    own_root.run("rm", "-r", "/usr/lib/backy")
    restored = "backy-restore /srv/backy/vm1 latest vda /images/by-script.img"
    assert "vda  3.0 MiB" in own_root.run("backy-restore", "/srv/backy/vm1").stdout
    own_root.run("sh", "-c", f"command -v zstd || exit 0; {restored}")
    if (images / "by-script.img").exists():  # zstd is only recommended
        assert (images / "by-script.img").read_bytes() == (images / "vm1.img").read_bytes()


def test_the_example_configuration_is_in_place_and_valid(root: Root) -> None:
    said = json.loads(root.run("backy", "config", "check", "--json").stdout)
    assert (said["file"], said["jobs"], said["problems"]) == (f"/{CONFIGURATION}", 0, [])
    # Until `backy init`, or the first backup, made it.
    assert {each["key"] for each in said["warnings"]} <= {"global.base-dir"}


def test_a_file_in_jobs_d_is_a_job(own_root: Root) -> None:
    (own_root.path / "etc/backy/jobs.d/vm1.yaml").write_text(JOB)
    said = json.loads(own_root.run("backy", "config", "check", "--json").stdout)
    assert said["jobs"] == 1


def test_modules_from_elsewhere_do_not_get_into_the_program(root: Root) -> None:
    folder = root.path / "evil"
    folder.mkdir()
    for name in ("backy", "json", "typer"):
        (folder / f"{name}.py").write_text("raise SystemExit('evil')\n")
    script = "cd /evil && backy init >/dev/null && backy list --json"
    done = root.run("sh", "-c", script, PYTHONPATH="/evil", PYTHONHOME="/evil", check=False)
    assert "evil" not in done.stderr
    assert done.returncode == 0


def test_nothing_is_written_into_the_installation_when_it_is_used(root: Root) -> None:
    root.run("backy", "backup", "vm2", "--source", "/images/vm1.img")
    root.run("backy", "status", "--json")
    assert root.run("dpkg", "--verify", "backy").stdout == ""
    owned = set(root.run("dpkg", "--listfiles", "backy").stdout.splitlines())
    found = (root.path / "usr/lib/backy").rglob("*")
    assert {f"/{path.relative_to(root.path)}" for path in found} <= owned


def test_an_upgrade_keeps_the_configuration_as_it_was_changed(own_root: Root, deb: Path) -> None:
    with (own_root.path / CONFIGURATION).open("a") as file:
        file.write("# changed here\n")
    own_root.install(deb)
    assert (own_root.path / CONFIGURATION).read_text().endswith("# changed here\n")


def test_removing_it_keeps_the_configuration_and_purging_it_only_the_backups(
    own_root: Root,
) -> None:
    own_root.run("backy", "backup", "vm1", "--source", "/images/vm1.img")
    own_root.run("dpkg", "--remove", "backy")
    assert (own_root.path / CONFIGURATION).exists()
    assert not (own_root.path / "usr/lib/backy").exists()
    said = own_root.run("dpkg", "--purge", "backy").stdout
    assert "/srv/backy are left" in said
    assert not (own_root.path / CONFIGURATION.parent).exists()
    left = list(own_root.path.glob("usr/**/*backy*"))
    assert left == []
    restored = own_root.run("sh", "-c", "cd /srv/backy/vm1 && ls restore.sh revisions").stdout
    assert "restore.sh" in restored


@contextmanager
def notified() -> Iterator[tuple[str, socket.socket]]:
    """An address for NOTIFY_SOCKET, and what hears what is said there."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind("")  # the kernel chooses a free abstract name, unix(7)
        yield "@" + ear.getsockname()[1:].decode(), ear


@contextmanager
def started(root: Root, address: str) -> Iterator[subprocess.Popen[str]]:
    """The daemon as systemd starts it; killed at the end if it still runs."""
    command = root.command("backy", "daemon", "--log-json")
    settings = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET": address}
    with subprocess.Popen(command, env=settings, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_installed_daemon_says_that_it_is_ready_backs_up_and_ends_at_sigterm(
    own_root: Root,
) -> None:
    (own_root.path / "etc/backy/jobs.d/vm1.yaml").write_text(JOB)
    with notified() as (address, ear), ends(120), started(own_root, address) as daemon:
        assert ear.recv(4096) == b"READY=1"
        own_root.run("backy", "run", "vm1")
        assert daemon.stderr is not None
        events = map(json.loads, daemon.stderr)
        done = next(event for event in events if event["event"] in {"finished", "failed"})
        assert done["event"] == "finished"
        daemon.send_signal(signal.SIGTERM)
        daemon.stderr.read()
        assert daemon.wait() == 0
    listed = json.loads(own_root.run("backy", "list", "vm1", "--json").stdout)
    assert len(listed["jobs"][0]["revisions"]) == 1
