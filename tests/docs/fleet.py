"""The scripts of docs/fleet.md in a path with the backy under test, as an operator has them."""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.cli.runner import MIB, Backy, data
from tests.docs.markdown import scripts
from tests.docs.stage import SYSTEM_PATH, Stage
from tests.programs import MARK, alive, wait_for_none

SCRIPTS = scripts("fleet.md")
_LIMIT = 300  # seconds that a script may take before the test fails


@dataclass(frozen=True, slots=True)
class Fleet:
    """A base directory with VMs, and a folder `mass` in which a mass restore is done."""

    root: Path

    @property
    def backy(self) -> Backy:
        return Backy(self.root / "srv" / "backy")

    @property
    def mass(self) -> Path:
        return self.root / "mass"

    @property
    def targets(self) -> Path:
        return self.root / "restored"

    def make(self) -> None:
        """Make the folders and the programs, without a VM."""
        for folder in (self.root / "bin", self.root / "images", self.backy.base, self.mass):
            folder.mkdir(parents=True)
        stage = Stage(self.root)
        stage.install_backy()
        stage.install(SCRIPTS)

    def add(self, name: str, **disks: bytes) -> str:
        """Back up a VM with these disks, or with one of two blocks; give the revision."""
        words: list[str] = []
        for disk, content in (disks or {"vda": data(hash(name), 2 * MIB)}).items():
            path = self.image(name, disk)
            path.write_bytes(content)
            words += ["--source", f"{disk}={path}"]
        self.backy.ok("backup", name, *words, "--store", "chunks")
        return self.backy.revisions(name)[-1]

    def image(self, name: str, disk: str = "vda") -> Path:
        """What was backed up."""
        return self.root / "images" / f"{name}-{disk}.img"

    def restored(self, name: str, disk: str = "vda") -> Path:
        """What a mass restore made of it."""
        return self.targets / name / f"{disk}.img"

    def is_back(self, name: str) -> bool:
        target = self.restored(name)
        return target.exists() and target.read_bytes() == self.image(name).read_bytes()

    def plan(self, *order: str) -> None:
        """Have the scripts plan a restore of these lines, most urgent first."""
        done = self.run("mass-plan", stdin="".join(f"{line}\n" for line in order))
        assert done.returncode == 0, done.stderr
        (self.mass / "plan").write_text(done.stdout)

    def plan_lines(self) -> list[list[str]]:
        return [line.split() for line in (self.mass / "plan").read_text().splitlines()]

    def environment(self, **more: str) -> dict[str, str]:
        configuration = self.root / "backy.yaml"
        return {
            "PATH": f"{self.root}/bin:{SYSTEM_PATH}",
            "HOME": str(self.root),
            "LC_ALL": "C.UTF-8",
            "BACKY_BASE_DIR": str(self.backy.base),
            "TARGET": f"{self.targets}/{{job}}",
            MARK: str(self.root),
            **({"BACKY_CONFIG": str(configuration)} if configuration.exists() else {}),
            **more,
        }

    def run(
        self, *command: str | Path, stdin: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts in the folder of the mass restore, to its end."""
        return subprocess.run(
            command,
            input=stdin,
            cwd=self.mass,
            env=self.environment(**env or {}),
            capture_output=True,
            text=True,
            check=False,
            timeout=_LIMIT,
        )

    @contextmanager
    def started(self, *command: str, **more: str) -> Iterator["subprocess.Popen[bytes]"]:
        """Start a script there; what it started may outlive it, and ends with the test."""
        with (self.mass / "said").open("ab") as said:
            process = subprocess.Popen(
                command, cwd=self.mass, env=self.environment(**more), stdout=said, stderr=said,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        with process:
            try:
                yield process
            finally:
                process.kill()

    def kill(self, *names: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to what was started here: to programs with these names, or to all."""
        for process in alive(str(self.root)):
            with suppress(OSError):
                if not names or Path(f"/proc/{process}/comm").read_text().strip() in names:
                    os.kill(process, number)

    def power_cut(self) -> None:
        """Kill -9 everything that was started here, and wait until it is gone."""
        self.kill()
        wait_for_none(str(self.root))

    def complete(self) -> set[str]:
        """The VMs that the mass restore knows to be done."""
        return {path.name for path in (self.mass / "complete").glob("*") if path.stat().st_size}
