"""Only the doors in backy.system change files and start programs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tools.check_doors import banned_names, findings

ROOT = Path(__file__).parents[2]
BANNED = banned_names(ROOT)

BANNED_BY_RUFF = [
    "import os\nos.open('x', 0)",
    "import os\nos.pwrite(1, b'', 0)",
    "import os as system\nsystem.rename('a', 'b')",
    "from os import unlink\nunlink('x')",
    "import os.path\nos.replace('a', 'b')",
    "import shutil\nshutil.rmtree('x')",
    "from tempfile import mkdtemp\nmkdtemp()",
    "import fcntl",
    "import io\nio.open('x')",
    "import subprocess",
    "from subprocess import run",
    "import os\nos.system('x')",
    "import os\nos.execv('x', [])",
    "import os\nos.posix_spawn('x', [], {})",
    "import os\nos.kill(1, 9)",
    "import signal",
    "import asyncio\nasyncio.create_subprocess_exec('x')",
    "import multiprocessing.pool",
    "from concurrent.futures import ProcessPoolExecutor",
]
WRITING_CALLS = [
    "open('x')",
    "path.write_text('')",
    "(folder / 'x').write_bytes(b'')",
    "path.unlink(missing_ok=True)",
    "path.mkdir()",
    "path.replace(other)",
    "path.open('wb')",
    "path.open(mode='a')",
    "path.open('r+b')",
]
HARMLESS_CALLS = [
    "path.read_text()",
    "path.open()",
    "from backy.image import open\nopen('x')",
    "path.open('rb')",
    "store.open('vda', revision)",
    "'text'.replace('a', 'b')",
    "moment.replace(tzinfo=UTC)",
    "from backy.system import folders\nfolders.rename(old, new)",
    "import backy.system.files\nbacky.system.files.unlink(path)",
    "from backy.system.folders import Folder\nFolder.mkdir(path)",
]


def found(text: str, door: str | None = None) -> list[str]:
    return list(findings(ast.parse(text), door, BANNED))


@pytest.mark.parametrize("text", BANNED_BY_RUFF)
def test_ruff_finds_the_functions_of_modules(text: str) -> None:
    name = ["--stdin-filename", "src/backy/stores/index.py", "-"]
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--no-cache", *name],
        cwd=ROOT,
        input=text,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "only backy." in result.stdout


@pytest.mark.parametrize("text", WRITING_CALLS)
def test_a_method_that_writes_is_found_outside_of_disk(text: str) -> None:
    assert len(found(text)) == 1
    assert len(found(text, "backy.system.process")) == 1
    assert found(text, "backy.system.files") == []


@pytest.mark.parametrize("text", HARMLESS_CALLS)
def test_a_call_that_writes_nothing_is_not_found(text: str) -> None:
    assert found(text) == []


def test_each_door_is_kept_from_what_belongs_to_the_other() -> None:
    text = "import os\nfrom subprocess import run\nos.unlink('x')\nos.kill(1, 9)\nrun([])\n"
    program = "only backy.system.process starts and signals programs"
    assert found(text, "backy.system.files") == [
        f"2: subprocess: {program}",
        f"4: os.kill: {program}",
    ]
    file = "only backy.system.files opens and changes files"
    assert found(text, "backy.system.process") == [f"3: os.unlink: {file}"]


def test_the_source_itself_passes() -> None:
    result = subprocess.run([sys.executable, "-m", "tools.check_doors"], cwd=ROOT, check=False)
    assert result.returncode == 0
