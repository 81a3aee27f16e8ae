"""What the targets of the Makefile say of themselves."""

import re
import subprocess
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def test_every_test_that_has_a_longer_version_is_in_make_soak() -> None:
    command = ["make", "--dry-run", "--always-make", "--no-print-directory", "soak"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    [line] = re.findall(r"BACKY_SEEDS=.* pytest .*", done.stdout.replace("\\\n", " "))
    settings, _, arguments = line.partition(" pytest ")
    named = [f'"{name}"' for name in re.findall(r"([A-Z_]+)=", settings)]
    assert '"BACKY_ROUNDS"' in named
    shell = ["sh", "-c", f"printf '%s\\n' {arguments}"]
    listed = subprocess.run(shell, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    run = {PROJECT / word for word in listed.split()}
    longer = {
        path
        for path in (PROJECT / "tests").rglob("test_*.py")
        if any(name in path.read_text() for name in named)
    } - {Path(__file__)}
    assert {path for path in longer if run.isdisjoint({path, *path.parents})} == set()
