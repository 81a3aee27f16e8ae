"""backy boot: start a VM from a revision, and copy its disks meanwhile."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from backy.cli import values
from backy.cli.app import AsJson, Context, app
from backy.cli.output import answer
from backy.cli.progress import meter
from backy.errors import UsageError
from backy.model.answers import BootAnswer

_WORD = "A job, or JOB@REV for another revision than the latest."
Word = Annotated[str, Argument(parser=values.job_word, metavar="JOB[@REV]", help=_WORD)]
_RUN = "qemu: start it here; libvirt: define a domain and start it; print: print the commands."
Run = Annotated[
    Literal["qemu", "libvirt", "print"], Option(metavar="qemu|libvirt|print", help=_RUN)
]
_STATE = "The folder for the disks of the VM, on local storage; or /var/lib/backy/boot/JOB."
State = Annotated[Path | None, Option(parser=values.path, metavar="FOLDER", help=_STATE)]
_RATE = "Copy at most this much in a second, so that the guest gets the rest."
Rate = Annotated[int | None, Option(parser=values.rate, metavar="SIZE", help=_RATE)]
_MEMORY = "The memory of the VM; by default as in the saved definition, or 1GiB."
Memory = Annotated[int | None, Option(parser=values.memory, metavar="SIZE", help=_MEMORY)]
_CPUS = "Its processors; by default as in the saved definition, or 1."
Cpus = Annotated[int | None, Option(min=1, max=255, metavar="COUNT", help=_CPUS)]
_UEFI = "It starts with UEFI, even if the saved definition does not say so."
Uefi = Annotated[bool, Option("--uefi", help=_UEFI)]
_NETWORK = "What -nic of QEMU takes, such as user, or a network of libvirt; by default none."
Network = Annotated[str | None, Option(metavar="NIC", help=_NETWORK)]
_INTO = "Move a disk to this target after the boot: rbd:POOL/IMAGE, qcow2:PATH or a PATH."
Into = Annotated[
    list[values.DiskPlace] | None,
    Option(parser=values.disk_place, metavar="[DISK=]TARGET", help=_INTO),
]


@app.command(epilog="Example: backy boot vm1@2026-11-23 --run qemu --state /vms/vm1")
def boot(
    context: Context,
    word: Word,
    run: Run = "qemu",
    state: State = None,
    rate: Rate = None,
    memory: Memory = None,
    cpus: Cpus = None,
    uefi: Uefi = False,
    network: Network = None,
    into: Into = None,
    as_json: AsJson = False,
) -> None:
    """Start a VM from a revision at once, and copy its disks meanwhile.

    The VM reads from the revision what its own disks do not have yet. It and what it wrote outlive
    this command: if anything is stopped or killed, run the same command again, and it goes on. At
    its end the VM needs nothing of backy, and runs until it is shut down.
    """
    from backy.operations.boot import boot_job
    from backy.operations.boot_plan import BootOptions, commands, planned

    mode = "qemu" if run == "print" else run
    if (into and run != "qemu") or (run == "libvirt" and (memory or cpus or uefi)):
        why = "--into is for --run qemu; --memory, --cpus and --uefi are not for libvirt"
        raise UsageError(why, "Change the domain later: virsh edit JOB-boot.")
    options = BootOptions(state, rate or 0, memory, cpus, uefi, network or "", mode, into or [])
    if run == "print":
        lines = list(commands(planned(context.obj, word, options)))
        answer(as_json, BootAnswer(commands=lines), lines)
        return
    with meter(word, as_json=as_json) as shown:
        finished = boot_job(context.obj, word, options, watcher=shown)
    now = "has shut down" if finished["shut_down"] else "runs on"
    where = ", ".join(finished["disks"].values())
    text = f"its disks are {where} after {finished['seconds']:.1f} s; the VM {now}"
    answer(as_json, finished, f"{finished['job']}: {finished['revision']}: {text}")
