"""What the figures were measured on: no host name, no path."""

import os
import platform
from contextlib import suppress
from pathlib import Path

from benchmarks.measure import BenchmarkError, output_of
from benchmarks.space import GIB, file_system_of

VERSIONS = {
    "restic": ("restic", "version"),
    "borg": ("borg", "--version"),
    "qemu-img": ("qemu-img", "--version"),
    "zstd": ("zstd", "--version"),
    "cp and dd": ("cp", "--version"),
    "mkfs.xfs": ("mkfs.xfs", "-V"),
}


def describe(work: Path, backy: Path) -> dict[str, str]:
    """The machine and the versions of all tools, ready to be read by people."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{_memory_bytes() / GIB:.0f} GiB",
        "system": _system(),
        "kernel": platform.release(),
        "file system": file_system_of(work),
        "Python": platform.python_version(),
        **versions(backy),
    }


def versions(backy: Path) -> dict[str, str]:
    """First line of what each tool says about its version; without the tools that are missing."""
    found = {}
    for name, command in {"backy": (str(backy), "--version"), **VERSIONS}.items():
        with suppress(BenchmarkError):
            found[name] = output_of(command).strip("* \n").splitlines()[0]
    return found


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _system() -> str:
    with suppress(OSError):
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    return platform.system()
