"""The stage on which the commands of the documentation run, and how their output is compared.

The pages speak of /srv/backy, /images, /etc/backy and ~ as an operator would; on the stage these
are folders of the test, REV is the newest revision, and `backy` is the backy under test.
"""

import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import backy
from tests.docs.markdown import PROJECT, Block, scripts

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_MARK = "@@@ next command @@@"
# Where the last block ended, and the note of where this one does.
_GO_ON = """shell=$PWD/.shell
[ ! -e "$shell" ] || . "$shell"
trap '{ export -p; printf "cd %q\\n" "$PWD"; } >"$shell"' EXIT
"""
_ID = re.compile(r"\b\d{8}T\d{6}Z-[a-z0-9]{4}\b")
_HASH = re.compile(r"\b(?:[0-9a-f]{2}/)?[0-9a-f]{64}\b")
_NUMBER = re.compile(r"\d+(?:[.:T-]+\d+)*Z?")
_UNIT = re.compile(r"# [KMGT]?i?B\b")


@dataclass(frozen=True, slots=True)
class Stage:
    """A folder with `images` and `srv/backy` in it, and a `backy` in the path."""

    root: Path

    def make(self) -> None:
        """Make the folders, the program, and a disk of 64 MiB with a real file system."""
        for name in ("bin", "home/you", "images", "srv/backy", "etc/backy"):
            (self.root / name).mkdir(parents=True)
        self.install_backy()
        # Always the same content, so that the pages can show which ranges changed.
        self.sh("""mkdir files; seq 400000 >files/numbers
            mkfs.ext4 -q -d files /images/vm1.img 64M; rm -r files""")

    def copied(self, root: Path) -> Self:
        """The same in `root`, also to the repositories, which remember where their source is."""
        root.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "--archive", "--reflink=auto", f"{self.root}/.", root], check=True)
        for path in root.glob("srv/backy/*/repository.json"):
            path.write_text(path.read_text().replace(f"{self.root}/", f"{root}/"))
        return replace(self, root=root)

    def prepare(self, wanted: str) -> None:
        """Do what a stage comment asks for, such as "chunks, change"."""
        for word in wanted.split(", "):
            if word == "scripts":
                self.install(scripts("fleet.md"))
            else:
                self.sh(_ACTIONS[word])

    def install_backy(self) -> None:
        """Put the backy under test in the path."""
        source = Path(backy.__file__).parents[1]
        call = "import sys; from backy.cli import main; sys.exit(main())"
        program = f'PYTHONPATH="{source}" exec "{sys.executable}" -c "{call}" "$@"'
        self.install({"backy": f"#!/bin/sh\n{program}\n"})

    def install(self, programs: dict[str, str]) -> None:
        """Put these in the path, by name."""
        for name, text in programs.items():
            (self.root / "bin" / name).write_text(text)
            (self.root / "bin" / name).chmod(0o755)

    def sh(self, script: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a script; output and error messages come together, with the pages' paths in them."""
        ids = sorted(path.name for path in self.root.glob("srv/backy/vm1/revisions/2*"))
        script = script.replace("REV", ids[-1]) if ids else script
        configuration = self.root / "etc" / "backy" / "backy.yaml"
        script = re.sub(r"(?<![\w/.])/(images|srv|etc/backy)\b", rf"{self.root}/\1", script)
        result = subprocess.run(
            ["bash", "-c", script],
            cwd=self.root,
            env={
                "PATH": f"{self.root}/bin:{SYSTEM_PATH}",
                "BACKY_BASE_DIR": f"{self.root}/srv/backy",
                **({"BACKY_CONFIG": str(configuration)} if configuration.exists() else {}),
                "LC_ALL": "C.UTF-8",
                "HOME": f"{self.root}/home/you",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        said = result.stdout.replace(f"{self.root}/", "/")
        if check and result.returncode:
            raise AssertionError(f"exit code {result.returncode}:\n{script}\n{said}")
        return subprocess.CompletedProcess(script, result.returncode, said)

    def play(self, block: Block) -> tuple[str, str]:
        """Run a block; give what it promises and what came, both without what differs each time.

        Blocks are typed into one shell: each begins in the folder and with the variables in which
        the one before it ended.
        """
        if block.language == "stage":
            self.prepare(block.text)
            return "", ""
        if block.language == "sh":
            self.sh(f"{_GO_ON}set -eo pipefail\n{block.text}")
            return "", ""
        steps = session(block.text)
        lines = [_GO_ON, f"mark() {{ local code=$?; echo '{_MARK}'; return $code; }}"]
        for command, _ in steps:
            lines += ["mark", command]
        outputs = self.sh("\n".join(lines), check=False).stdout.split(f"{_MARK}\n")[1:]
        came = zip((command for command, _ in steps), outputs, strict=True)
        return _transcript(steps), _transcript(list(came))


def session(text: str) -> list[tuple[str, str]]:
    """The commands of a console block, each with the output that it shows."""
    steps: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], ""))
        elif steps and steps[-1][0].endswith("\\"):
            steps[-1] = (f"{steps[-1][0]}\n{line}", "")
        else:
            command, output = steps[-1]
            steps[-1] = (command, f"{output}{line}\n")
    return steps


def _transcript(steps: list[tuple[str, str]]) -> str:
    return "".join(f"$ {command}\n{steady(output)}" for command, output in steps)


def steady(output: str) -> str:
    """`output` without what differs from run to run: ids, hashes, numbers, units, widths."""
    for pattern, name in ((_ID, "ID"), (_HASH, "HASH"), (_NUMBER, "#"), (_UNIT, "# B")):
        output = pattern.sub(name, output)
    output = re.sub(r"\b(none|crash)\b", "CONSISTENCY", output)
    lines = (" ".join(line.split()) for line in output.splitlines())
    return "".join(f"{line}\n" for line in lines if line)


# The list of all blocks of a revision, by way of its pages.
_LIST = """list() { sed 's|^..|pages/&/&|' "$1/vda.blocks" | xargs cat; }"""
_FIND_BLOCK = f"""cd /srv/backy/vm1
        {_LIST}
        set -- revisions/2*
        list "$1" >~/older.list
        chunk=$(list revisions/REV | grep -vxFf ~/older.list |
            sed 's|^..|chunks/&/&|; s|$|.zst|' | xargs ls -S | sed -n 1p)
        hash=$(basename "$chunk" .zst)"""
# No backy of today makes format 1: tests/lab/handmade.py makes it from the description.
_FORMAT_1 = f"""cd "{PROJECT}" && "{sys.executable}" - <<END
from pathlib import Path
from tests.lab.handmade import Handmade
repository = Handmade(Path("$STAGE/srv/backy/vm1"), "chunks", format=1)
repository.make()
repository.add("20261123T004938Z-x7k2", {{"vda": Path("$STAGE/images/vm1.img").read_bytes()}})
END"""
# The paths in it are written by the shell, which knows where the stage is.
_CONFIGURE = """cat >/etc/backy/backy.yaml <<END
global: {socket: $PWD/socket}
schedules:
  default:
    daily: {interval: 1d, keep: 9}
    weekly: {interval: 7d, keep: 5}
jobs:
  vm1: {schedule: default, source: {type: file, disks: {vda: $PWD/images/vm1.img}}}
END"""
_ACTIONS = {
    "configured": _CONFIGURE,
    "empty": "true",
    # Whatever was restored is the same as the source.
    "compare": """set -e
        for restored in /images/vm1-*; do cmp "$restored" /images/vm1.img; done
        rm /images/vm1-*""",
    # The folder of repositories, on another machine.
    "dead": "mv /srv/backy /srv/rescued; rm -rf /etc/backy",
    "restored-all": "cmp /images/restored/vm1/vda.img /images/vm1.img",
    # The newest revision is the source, and the one before is not.
    "restored": """set -e
        cmp /images/vm1-restored.img /images/vm1.img
        ! cmp -s /images/vm1-yesterday.img /images/vm1.img""",
    "change": "head -c 3000000 /dev/urandom >report.pdf;"
    " debugfs -w -R 'write report.pdf report.pdf' /images/vm1.img",
    **{
        store: f"""set -e
        backy backup vm1 --source /images/vm1.img --store {store} --tag daily
        seq 3000 >license.txt; debugfs -w -R 'write license.txt license.txt' /images/vm1.img
        backy backup vm1 --tag daily"""
        for store in ("chunks", "images")
    },
    # The largest block that only the newest revision has: the disk still has it, and can heal it.
    "damage": f"""set -e
        {_FIND_BLOCK}
        truncate -s -1 "chunks/$(printf %.2s "$hash")/$hash.zst\"""",
    "format-1": f"STAGE=$PWD; {_FORMAT_1}",
    # One page is gone, and all others have lost their end.
    "lost-pages": """cd /srv/backy/vm1
        set -- pages/??/*
        rm "$1"; shift
        truncate -s -1 "$@\"""",
    "unreadable": "printf '{' >/srv/backy/vm1/revisions/REV/revision.json",
    # The machine writes to that block, which then is nowhere as it was.
    "overwrite": f"""set -e
        {_FIND_BLOCK}
        line=$(list revisions/REV | sed -n "/$hash/=")
        printf new | dd of=/images/vm1.img bs=1 seek=$((line * 1048576 - 4096)) conv=notrunc""",
}
