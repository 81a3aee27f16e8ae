"""After `make install` a shell finds backy, or the newcomer is told what is missing."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "link-program"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "clone" / "backy"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\necho here\n")
    path.chmod(0o755)
    return path


def link(program: Path, folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SCRIPT, program, folder],
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


def shell(command: str, path: str) -> str:
    return subprocess.run(
        ["sh", "-c", command], env={"PATH": path}, capture_output=True, text=True, check=True
    ).stdout


def test_the_program_is_a_command_afterwards(program: Path, tmp_path: Path) -> None:
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    done = link(program, tmp_path / "bin", path)
    assert done.stdout == f"backy is installed: {tmp_path}/bin/backy\n"
    assert shell("backy", path) == "here\n"


def test_where_the_shell_does_not_look_the_line_to_type_makes_it_look(
    program: Path, tmp_path: Path
) -> None:
    said = link(program, tmp_path / "bin", os.environ["PATH"]).stdout
    (line,) = [each for each in said.splitlines() if each.startswith("    export ")]
    assert shell(f"{line}\nbacky", os.environ["PATH"]) == "here\n"


def test_another_program_that_the_shell_finds_first_is_named(program: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "backy"
    other.parent.mkdir()
    other.symlink_to(program)
    path = f"{other.parent}:{tmp_path}/bin:{os.environ['PATH']}"
    said = link(program, tmp_path / "bin", path).stdout
    assert said.splitlines()[-1] == f"Your shell finds another backy first: {other}"


def test_an_older_link_is_replaced(program: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "backy").symlink_to("/nonexistent/backy")
    assert link(program, tmp_path / "bin", os.environ["PATH"]).returncode == 0
    assert (tmp_path / "bin" / "backy").readlink() == program


def test_a_program_that_is_no_link_stays(program: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "backy").write_text("#!/bin/sh\necho backy 2\n")
    done = link(program, tmp_path / "bin", os.environ["PATH"])
    assert done.returncode == 1
    assert "exists and is not a link" in done.stderr
    assert "backy 2" in (tmp_path / "bin" / "backy").read_text()


def test_a_folder_that_cannot_be_made_is_an_error_with_a_way_out(
    program: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    done = link(program, tmp_path / "file" / "bin", os.environ["PATH"])
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].endswith("make install PREFIX=FOLDER")


def test_make_install_takes_a_folder_that_shells_look_into() -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": "/home/you"}
    said = subprocess.run(
        ["make", "-n", "install"],
        cwd=SCRIPT.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    prefix = "/home/you/.local" if os.geteuid() else "/usr/local"
    assert said.splitlines()[-2:] == [
        f"tools/link-program .venv/bin/{name} {prefix}/bin" for name in ("backy", "backy-restore")
    ]


def test_the_script_is_clean_shell() -> None:
    subprocess.run(["shellcheck", "--shell=sh", SCRIPT], check=True)
