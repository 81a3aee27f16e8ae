"""demo.sh shows what backy does, leaves nothing behind, and fails if a disk comes back changed."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.docs import markdown
from tests.docs.stage import SYSTEM_PATH, Stage

DEMO = markdown.PROJECT / "demo.sh"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage(tmp_path / "stage")
    made.make()
    (tmp_path / "tmp").mkdir()
    return made


def demo(stage: Stage, program: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": SYSTEM_PATH, "TMPDIR": str(stage.root.parent / "tmp")}
    environment |= {"BACKY": str(program), "HOME": os.environ.get("HOME", "/")}
    return subprocess.run(
        ["bash", DEMO], env=environment, cwd="/", capture_output=True, text=True, check=False
    )


def faulty(stage: Stage, then: str) -> Path:
    """A backy that does what it is told, and then something else: `then`, in shell."""
    program = stage.root / "bin" / "faulty"
    program.write_text(f'#!/bin/sh\n"{stage.root}/bin/backy" "$@" || exit\n{then}\n')
    program.chmod(0o755)
    return program


def test_the_demo_runs_shows_its_commands_and_leaves_nothing_behind(stage: Stage) -> None:
    result = demo(stage, stage.root / "bin" / "backy")
    assert result.returncode == 0, result.stdout + result.stderr
    for command in ("backup", "list", "diff", "verify", "restore"):
        assert f"$ backy {command} vm1" in result.stdout
    assert "$ cmp vm1.img by-script.img" in result.stdout
    assert result.stdout.rstrip().endswith(
        "Every restored disk equals the disk that was backed up."
    )
    assert "\x1b" not in result.stdout + result.stderr
    assert list((stage.root.parent / "tmp").iterdir()) == []


def test_the_demo_says_what_it_does_before_it_begins(stage: Stage) -> None:
    """Every command hangs: what is read now was printed before the first of them ended."""
    hanging = stage.root / "bin" / "hanging"
    hanging.mkdir()
    for name in ("mkfs.ext4", "cp"):
        (hanging / name).write_text("#!/bin/sh\nsleep 60\n")
        (hanging / name).chmod(0o755)
    environment = {"PATH": f"{hanging}:{SYSTEM_PATH}", "TMPDIR": str(stage.root.parent / "tmp")}
    with subprocess.Popen(
        ["bash", DEMO],
        env=environment | {"BACKY": str(stage.root / "bin" / "backy")},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        assert running.stdout
        try:
            assert "This demo backs up" in running.stdout.readline()
        finally:
            os.killpg(running.pid, signal.SIGTERM)


def test_warnings_of_the_demo_stand_below_their_command(stage: Stage) -> None:
    result = demo(stage, stage.root / "bin" / "backy")
    assert result.stderr == ""
    if "chunks" in result.stdout:
        assert "warning: healed from the source" in result.stdout.split("$ backy verify vm1")[2]


def test_the_demo_fails_when_a_disk_comes_back_with_one_byte_changed(stage: Stage) -> None:
    then = '[ "$1" != restore ] || printf x | dd of="$3" bs=1 seek=9999 conv=notrunc status=none'
    result = demo(stage, faulty(stage, then))
    assert result.returncode != 0
    assert "Every restored disk equals" not in result.stdout
    assert list((stage.root.parent / "tmp").iterdir()) == []


def test_the_demo_says_what_to_do_where_backy_is_not_installed(stage: Stage) -> None:
    result = demo(stage, stage.root / "missing")
    assert result.returncode == 1
    assert "make install" in result.stderr


def test_the_demo_is_clean_shell() -> None:
    subprocess.run(["shellcheck", DEMO], check=True)
