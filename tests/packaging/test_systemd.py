"""The unit does what it promises, under a real systemd that is process 1 of a small machine."""

import configparser
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.lab.needs import absent, need
from tests.packaging.conftest import PROJECT, Once
from tests.packaging.root import Root

UNIT = PROJECT / "contrib/systemd/backy.service"
HERE = Path(__file__).parent
# What `systemd-analyze security` says; the end of the unit has what is left out on purpose.
EXPOSURE = 5.4
JOB = """
vm1:
  source: {type: file, disks: {vda: /images/vm1.img}}
  schedule: default
  hooks: {before-snapshot: /hook.sh, after-snapshot: /hook.sh}
"""
QEMU_JOB = """
vm3:
  source: {type: qemu, qmp: /run/vm3/qmp, disks: {vda: vda}}
  schedule: default
"""
PROBE = """
[Unit]
Requires=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -x /machine.sh
StandardError=append:/trace
"""
_PATIENCE = "600"  # seconds


def test_systemd_finds_nothing_wrong_with_the_unit(systemd_root: Root) -> None:
    unit = "/usr/lib/systemd/system/backy.service"
    done = systemd_root.run("systemd-analyze", "verify", "--man=no", unit)
    assert done.stdout + done.stderr == ""


def test_the_unit_starts_what_make_install_makes_where_there_is_no_package(
    systemd_root: Root, tmp_path: Path
) -> None:
    root = systemd_root.copy(tmp_path / "root")
    verify = ["systemd-analyze", "verify", "--man=no", "/etc/systemd/system/backy.service"]
    shutil.copy(UNIT, root.path / "etc/systemd/system")
    (root.path / "usr/bin/backy").rename(root.path / "usr/lib/backy/moved")
    assert "backy is not executable" in root.run(*verify, check=False).stderr
    (root.path / "usr/local/bin").mkdir(parents=True, exist_ok=True)
    (root.path / "usr/local/bin/backy").symlink_to("/usr/lib/backy/bin/backy")
    done = root.run(*verify)
    assert done.stdout + done.stderr == ""


def test_the_unit_is_no_more_exposed_than_was_argued_for(systemd_root: Root) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager"]
    said = systemd_root.run(*command, "/usr/lib/systemd/system/backy.service").stdout
    (score,) = re.findall(r"Overall exposure level for backy\.service: ([\d.]+)", said)
    assert float(score) <= EXPOSURE


def test_an_option_that_was_left_out_is_not_in_the_unit() -> None:
    text = UNIT.read_text()
    left_out = text[text.index("# Left out on purpose:") :]
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    lines = re.findall(r"(?m)^#   (\S.*?)  +\S", left_out)
    assert len(lines) > 5
    for option in (option for line in lines for option in line.split(", ")):
        name, _, value = option.partition("=")
        assert name not in unit["Service"] or unit["Service"][name] != (value or "yes")


def test_a_folder_for_backups_that_is_there_keeps_its_mode(
    systemd_root: Root, tmp_path: Path
) -> None:
    root = systemd_root.copy(tmp_path / "root")
    base = root.path / "srv/backy"
    assert base.stat().st_mode & 0o777 == 0o700
    base.chmod(0o750)
    root.run("systemd-tmpfiles", "--create", "backy.conf")
    assert base.stat().st_mode & 0o777 == 0o750


@pytest.fixture(scope="session")
def facts(once: Once, systemd_root: Root, deb: Path) -> dict[str, str]:
    """What a machine said that booted, had the package installed, and did a day's work."""
    need(absent("systemd-nspawn", "qemu-img", "qemu-storage-daemon"))
    folder = once("machine", lambda new: boot(systemd_root.copy(new), deb))
    said = (folder / "said").read_text()
    assert "done=yes" in said, (folder / "trace").read_text()
    return dict(line.split("=", 1) for line in said.splitlines())


def add_program(root: Root, name: str) -> None:
    """Copy a program of this machine and the libraries that the root lacks."""
    program = shutil.which(name)
    assert program
    said = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    for path in [program, *re.findall(r"=> (/\S+)", said)]:
        there = root.path / path.lstrip("/")
        if not there.exists():
            shutil.copy(path, there)


def boot(root: Root, deb: Path) -> None:
    """Boot it; it runs machine.sh and powers off."""
    shutil.copy(deb, root.path / "backy.deb")
    for script in ("machine.sh", "hook.sh"):
        shutil.copy(HERE / script, root.path)
    (root.path / "vm1.yaml").write_text(JOB)
    (root.path / "vm3.yaml").write_text(QEMU_JOB)
    for program in ("qemu-img", "qemu-storage-daemon"):
        add_program(root, program)
    for name in ("images", "etc/lvm", "opt", "mnt"):
        (root.path / name).mkdir(parents=True, exist_ok=True)
    (root.path / "images/vm1.img").write_bytes(os.urandom(3 * 1024**2))
    (root.path / "etc/systemd/system/machine.service").write_text(PROBE)
    for name in ("said", "trace"):
        (root.path / name).touch()
    # `timeout` ends it with SIGTERM: were nspawn killed, the machine would go on.
    limit = ["timeout", _PATIENCE, "systemd-nspawn", "--quiet", "--register=no", "--keep-unit"]
    booted = ["/lib/systemd/systemd", "systemd.unit=machine.service"]
    done = subprocess.run(
        [*limit, "--console=pipe", f"--directory={root.path}", *booted],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    with (root.path / "trace").open("ab") as trace:
        trace.write(done.stdout)


@pytest.mark.parametrize(
    ("fact", "value"),
    [
        pytest.param("without_jobs", "inactive", id="is-not-started-without-jobs"),
        pytest.param("without_jobs_at_boot", "disabled", id="nor-at-boot"),
        pytest.param("with_jobs", "active", id="is-started-where-jobs-are-there-already"),
        pytest.param("with_jobs_at_boot", "enabled", id="and-at-boot"),
        pytest.param("backed_up", "1", id="backs-up"),
        pytest.param("upgraded", "active", id="is-restarted-by-an-upgrade"),
        pytest.param("reloaded", "active", id="reloads"),
        pytest.param("stopped", "success", id="stops"),
        pytest.param("qemu_outside", "1", id="backs-up-a-qemu-outside-of-it-by-default"),
        pytest.param("scratch", "711 711 ", id="whose-user-may-pass-to-its-scratch-images"),
        pytest.param("scratch_left", "", id="of-which-nothing-is-left"),
        pytest.param("killed", "activating", id="is-to-start-again-when-it-was-killed"),
        pytest.param("hook_of_the_killed", "lives", id="which-leaves-what-ran-alone"),
        pytest.param("backed_up_without_the_daemon", "2", id="so-that-it-makes-its-revision"),
        pytest.param("hooks", 2 * "before-snapshot after-snapshot ", id="and-thaws-its-guest"),
        pytest.param("from_usr_local", "active", id="starts-what-make-install-links-to"),
        pytest.param("removed", "inactive", id="is-stopped-before-it-is-removed"),
    ],
)
def test_the_service(facts: dict[str, str], fact: str, value: str) -> None:
    assert facts[fact] == value


@pytest.mark.parametrize(
    "what",
    [
        "become_another_user",
        "make_a_namespace",
        "mount",
        "record_volume_groups",
        "write_a_dump",
    ],
)
def test_a_hook_may_do_what_hooks_are_for(facts: dict[str, str], what: str) -> None:
    assert facts[f"may_{what}"] == "yes"


@pytest.mark.parametrize(
    "what",
    [
        "change_programs",
        "change_the_configuration",
        "see_tmp_of_others",
        "use_raw_sockets",
    ],
)
def test_a_hook_may_not_change_the_system(facts: dict[str, str], what: str) -> None:
    assert facts[f"may_{what}"] == "no"
