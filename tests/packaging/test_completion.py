"""Tab completes commands and options in real shells."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.runner import environment
from tests.lab.needs import absent, need
from tests.packaging.conftest import PROJECT
from tools.make_completion import PLACES, script

# Completes each line of standard input: what is typed, up to where Tab is hit.
BASH = """
source "$1"
while read -r line; do
    read -ra COMP_WORDS <<<"$line"
    [[ $line == *' .' ]] && COMP_WORDS[-1]=''
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$line COMP_POINT=${#line}
    COMPREPLY=()
    $(complete -p backy | sed 's/.* -F \\([^ ]*\\) .*/\\1/') backy
    echo "${COMPREPLY[@]}"
done
"""
FISH = 'source $argv[1]; while read line; echo (complete -C "$line" | string split -f1 \\t); end'
# zsh completes only at a terminal, which zpty is. Tab is hit once: that has to be enough.
ZSH = """
zmodload zsh/zpty
while read -r line; do
    zpty shell zsh -f -i
    zpty -w shell "PS1= PS2=; fpath=(${1:h} \\$fpath); autoload -Uz compinit; compinit -D -u"
    zpty -w shell 'zstyle ":completion:*" list-grouped false; LISTMAX=0; print ready-now'
    zpty -r shell output '*[^ ]ready-now*'
    zpty -w -n shell "$line"$'\\t'
    zpty -r shell output "*$2*" && print -r -- "$2"
    zpty -d shell
done
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts, laid out as in /usr/share, and a folder with the program for PATH."""
    made = tmp_path_factory.mktemp("share")
    for shell, place in PLACES.items():
        (made / place).parent.mkdir(parents=True)
        (made / place).write_text(script(shell))
    (made / "bin").mkdir()
    program = made / "bin" / "backy"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m backy "$@"\n')
    program.chmod(0o755)
    return made


def completed(folder: Path, shell: str, code: str, typed: str, *more: str) -> list[str]:
    """What the shell offers where Tab is hit after `typed`."""
    need(absent(shell))
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    flags = {"bash": ["--norc", "-c"], "fish": ["--no-config", "-c"], "zsh": ["-f", "-c"]}[shell]
    name = [] if shell == "fish" else [shell]
    done = subprocess.run(
        [shell, *flags, code, *name, str(folder / PLACES[shell]), *more],
        input=f"{typed}\n",
        env=environment(PATH=path, HOME=str(folder), TERM="dumb"),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout.split()


CASES = [
    pytest.param("backy resto", ["restore"], id="a-command"),
    pytest.param("backy restore --keep", ["--keep-going"], id="an-option"),
    pytest.param("backy reports sh", ["show"], id="a-command-within-a-command"),
    pytest.param("backy --base", ["--base-dir"], id="an-option-of-the-program"),
]


@pytest.mark.parametrize(("typed", "offered"), CASES)
def test_bash_completes(folder: Path, typed: str, offered: list[str]) -> None:
    assert completed(folder, "bash", BASH, typed) == offered


def test_bash_offers_all_commands_where_none_is_typed(folder: Path) -> None:
    assert {"backup", "restore", "daemon"} <= set(completed(folder, "bash", BASH, "backy ."))


@pytest.mark.parametrize(("typed", "offered"), CASES[:2])
def test_fish_completes(folder: Path, typed: str, offered: list[str]) -> None:
    assert completed(folder, "fish", FISH, typed) == offered


@pytest.mark.parametrize(("typed", "offered"), CASES[:2])
def test_zsh_completes_when_tab_is_hit_for_the_first_time(
    folder: Path, typed: str, offered: list[str]
) -> None:
    assert completed(folder, "zsh", ZSH, typed, *offered) == offered


def test_scripts_are_written_where_debian_has_them(tmp_path: Path) -> None:
    make = [sys.executable, "-m", "tools.make_completion", str(tmp_path)]
    subprocess.run(make, env=environment(), cwd=PROJECT, check=True)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written == set(PLACES.values())
