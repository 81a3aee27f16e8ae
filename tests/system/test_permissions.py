"""What root obeys may be written by root alone: the file, every folder above it, every link."""

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backy.system import process
from backy.system.permissions import others_may_write, others_may_write_program
from backy.system.process import Program, guarding
from tests.lab.needs import need

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root refuses")


def acl(path: Path) -> None:
    """What `setfacl -m u:1000:rwx` does. The group bits of the mode show the mask then."""
    entries = [(1, 7, -1), (2, 7, 1000), (4, 5, -1), (16, 7, -1), (32, 5, -1)]
    packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)
    except OSError as error:
        need(f"no ACLs here: {error}")


def group(path: Path) -> None:
    os.chown(path, 0, 1000)
    path.chmod(0o775)


WAYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "owner": (lambda path: os.lchown(path, 1000, 0), "user 1000 may write {}"),
    "group": (group, "group 1000 may write {}"),
    "world": (lambda path: path.chmod(0o757), "everybody may write {}"),
    "acl": (acl, "others may write {}, by its ACL"),
}


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program, to which a link leads: above/link -> ../to/folder, above/link/program."""
    (tmp_path / "above").mkdir()
    (tmp_path / "to" / "folder").mkdir(parents=True)
    (tmp_path / "above" / "link").symlink_to("../to/folder")
    program = tmp_path / "to" / "folder" / "program"
    program.write_text("#!/bin/sh\necho ran >&2\n")
    program.chmod(0o755)
    return tmp_path / "above" / "link" / "program"


STEPS = ["", "above", "above/link", "to", "to/folder", "to/folder/program"]
CASES = [(step, way) for step in STEPS for way in WAYS if step != "above/link" or way == "owner"]


@pytest.mark.parametrize(("step", "way"), CASES)
def test_whoever_may_write_any_step_of_a_path_is_named_with_it(
    program: Path, tmp_path: Path, step: str, way: str
) -> None:
    path = tmp_path / step
    make, expected = WAYS[way]
    make(path)
    assert others_may_write(program) == expected.format(path)
    assert others_may_write_program(str(program)) == expected.format(path)
    outcome = process.run(Program((str(program),), {}, b"", 10))
    assert (outcome.code, outcome.output) == (126, f"refused: {expected.format(path)}")


def test_a_path_that_is_all_of_roots_is_trusted(program: Path) -> None:
    assert others_may_write(program) == ""
    assert process.run(Program((str(program),), {}, b"", 10)).output == "ran\n"


def test_the_group_root_counts_as_root(program: Path) -> None:
    program.chmod(0o775)
    assert others_may_write(program) == ""


def test_a_sticky_folder_is_safe_for_what_is_roots(program: Path, tmp_path: Path) -> None:
    (tmp_path / "to").chmod(0o1777)
    assert others_may_write(program) == ""


def test_a_program_is_looked_up_in_the_path(program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"/nowhere:{program.parent}:/usr/bin:/bin")
    program.chmod(0o757)
    assert others_may_write_program("program") == f"everybody may write {program.resolve()}"
    assert others_may_write_program("no-such-program") == ""
    assert others_may_write_program("sh") == ""


def test_links_that_lead_nowhere_end(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        others_may_write(tmp_path / "loop" / "file")


def test_the_guard_runs_nothing_that_others_may_write(program: Path, tmp_path: Path) -> None:
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o757)
    with guarding([Program((str(program),), {}, b"", 10)]):
        pass  # not disarmed, so it runs what it has
    assert not (tmp_path / "ran").exists()


def test_users_answer_for_what_they_run(program: Path) -> None:
    program.chmod(0o777)
    code = "from pathlib import Path; from backy.system.permissions import others_may_write as o; "
    code += "import os, sys; os.setuid(1000); print(repr(o(Path(sys.argv[1]))))"
    python = [sys.executable, "-c", code, str(program)]
    assert subprocess.check_output(python, text=True).strip() == "''"
