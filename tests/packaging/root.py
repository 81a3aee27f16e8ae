"""A small Debian in a folder: what is essential, what some packages depend on, and nothing else.

It is made of the files of this machine's own packages, so nothing is downloaded, and its dpkg
knows only these.  So a package that installs and runs in it has named all that it depends on.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DPKG = Path("var/lib/dpkg")
# Mounts are of the process alone, and go with it. Everything is replaced by the next, so that a
# signal to what was started reaches the program itself.
ENTER = """
mount --rbind /dev "$0/dev" && mount -t proc proc "$0/proc" && exec chroot "$0" "$@"
"""


@dataclass(frozen=True, slots=True)
class Root:
    """The folder, and how to run something in it."""

    path: Path

    def command(self, *arguments: str) -> list[str]:
        """The command line that runs `arguments` in it."""
        return ["unshare", "--mount", "sh", "-c", ENTER, str(self.path), *arguments]

    def run(
        self, *arguments: str, check: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, with nothing in its environment but a PATH and this."""
        done = subprocess.run(
            self.command(*arguments),
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"} | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert not check or done.returncode == 0, done
        return done

    def copy(self, path: Path) -> Root:
        """The same again, of which a test may change what is not below usr/ in place.

        The files of usr/ are those of the original: dpkg replaces, and never changes them.
        """
        path.mkdir()
        subprocess.run(["cp", "-al", self.path / "usr", path], check=True)
        others = [each for each in self.path.iterdir() if each.name != "usr"]
        subprocess.run(["cp", "-a", *others, path], check=True)
        return Root(path)

    def install(self, package: Path) -> str:
        """Install a file; what dpkg says, which has no warning in it."""
        shutil.copy(package, self.path / "tmp/new.deb")
        # Not synced: this root need not survive a power cut.
        done = self.run("dpkg", "--force-unsafe-io", "--install", "/tmp/new.deb")
        assert done.stderr == ""
        return done.stdout


def make(path: Path, packages: Iterable[str]) -> Root:
    """Make a root with what is essential and `packages`, all of which this machine has."""
    known = installed()
    chosen = closure([*packages, *(name for name in known if "Essential" in known[name])], known)
    names = [file for name in sorted(chosen) for file in files_of(name, known)]
    listed = "\0".join(dict.fromkeys(name.lstrip("/") for name in names if name != "/."))
    pack = ["tar", "-C", "/", "--no-recursion", "--null", "--files-from=-", "-c"]
    path.mkdir()
    with subprocess.Popen(pack, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as packer:
        unpacker = subprocess.Popen(["tar", "-C", path, "-x"], stdin=packer.stdout)
        assert packer.stdin is not None
        packer.stdin.write(listed.encode())
        packer.stdin.close()
        assert unpacker.wait() == 0
    assert packer.returncode == 0
    for name in ("passwd", "group"):  # written when base-passwd was configured, so not in its list
        shutil.copy(path / f"usr/share/base-passwd/{name}.master", path / "etc" / name)
    make_database(path / DPKG, chosen, known)
    return Root(path)


def make_database(folder: Path, chosen: Iterable[str], known: Mapping[str, Fields]) -> None:
    """What dpkg knows, cut down to the packages that are `chosen`."""
    for name in ("info", "updates", "triggers"):
        (folder / name).mkdir(exist_ok=True, parents=True)
    status = [known[name]["text"] for name in sorted(chosen)]
    (folder / "status").write_text("\n\n".join(status) + "\n")
    for name in chosen:
        for file in info_files(name, known):
            shutil.copy(file, folder / "info")


Fields = dict[str, str]


def installed() -> dict[str, Fields]:
    """The fields of each package that this machine has; `text` is all of them."""
    known = {}
    for text in Path("/", DPKG, "status").read_text().strip().split("\n\n"):
        fields = dict(re.findall(r"(?m)^([\w-]+): (.*)$", text)) | {"text": text}
        if fields["Status"] == "install ok installed":
            known[fields["Package"]] = fields
    return known


def closure(names: Iterable[str], known: Mapping[str, Fields]) -> set[str]:
    """`names` and all that they depend on; of alternatives, the first that is installed."""
    providers = {
        word: name
        for name, fields in known.items()
        for word in re.findall(r"([\w.+-]+)(?: \(.*?\))?(?:, |$)", fields.get("Provides", ""))
    }
    chosen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in chosen:
            chosen.add(name)
            waiting += dependencies(known[name], known, providers)
    return chosen


def dependencies(
    fields: Fields, known: Mapping[str, Fields], providers: Mapping[str, str]
) -> Iterator[str]:
    """What a package itself depends on."""
    wanted = f"{fields.get('Pre-Depends', '')},{fields.get('Depends', '')}"
    for group in filter(None, map(str.strip, wanted.split(","))):
        names = [re.split(r"[ :(]", each.strip())[0] for each in group.split("|")]
        found = [name if name in known else providers.get(name) for name in names]
        chosen = next(filter(None, found), None)
        assert chosen, f"{fields['Package']} depends on {group}, which is not installed"
        yield chosen


def info_files(name: str, known: Mapping[str, Fields]) -> list[Path]:
    """What dpkg has beside the status of a package; its name says the architecture, or not."""
    stems = {name, f"{name}:{known[name]['Architecture']}"}
    found = Path("/", DPKG, "info").glob(f"{name}*")
    return [file for file in found if file.name.rpartition(".")[0] in stems]


def files_of(name: str, known: Mapping[str, Fields]) -> list[str]:
    """The paths of a package that are there: an administrator may leave out documentation.

    Where dpkg still says /lib, that is a link to /usr/lib.
    """
    lists = [file for file in info_files(name, known) if file.suffix == ".list"]
    paths = [Path(line) for file in lists for line in file.read_text().splitlines()]
    real = [path.parent.resolve() / path.name for path in paths]
    return [str(path) for path in real if path.is_symlink() or path.exists()]
