"""Boot: start a VM from a revision at once, and copy its disks to this machine meanwhile.

A folder on this machine keeps all that a boot is: boot.json, which says of which revision; a qcow2
overlay for each disk, which has what the guest wrote and what was copied already; and the sockets
of QEMU and of `backy serve`, which run apart from this process and outlive it. So the same command
goes on after any of the three was killed. An overlay is never made again once the VM was started.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from backy.clients import vm
from backy.clients.guest_agent import Agent
from backy.clients.hardware import EMULATOR, accelerator
from backy.clients.qmp import Monitor, NotRunningError, connect
from backy.errors import (
    BusyError,
    NotFoundError,
    SourceError,
    StoreError,
    TargetError,
    translated,
)
from backy.image.progress import SILENCE, Watcher
from backy.operations.boot_plan import STATE, BootOptions, Plan, State, planned
from backy.operations.site import Site
from backy.repository.records import encode_record
from backy.repository.tags import retag
from backy.system import detached, files, folders, signals
from backy.system.detached import Detached
from backy.system.permissions import find_program
from backy.units import KiB, MiB

Found = TypeVar("Found")
_PROGRAM = (sys.executable, "-P", "-m", "backy")  # -P: no folder "backy" that happens to be here
_AGAIN = "Run the same command again: it goes on, and nothing that the guest wrote is lost."
_START_SECONDS = 60  # that the server or QEMU may take to start on a very busy machine
_QMP_SECONDS = 60
_LOOK_SECONDS = 0.25
_AGENT_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Booted:
    """The result: the VM runs, or its guest has shut down, and needs nothing of backy any more.

    `agent_seconds` is when the guest agent answered, from the start of the command on; None if it
    did not, or if the VM was running already.
    """

    job: str
    revision: str
    folder: Path
    overlays: Mapping[str, Path]
    seconds: float
    agent_seconds: float | None
    has_shut_down: bool


def boot_job(site: Site, word: str, options: BootOptions, *, watcher: Watcher = SILENCE) -> Booted:
    """Start the VM, or find it running, and copy all that it needs to its overlays.

    On return it needs nothing of backy, and goes on. `word` is JOB or JOB@REV. If this raises or
    is killed, the VM and the server go on, and the next call with the same word continues.

    Raises NotFoundError; TargetError if the folder has something else, or if QEMU or the server
    fails; BusyError if another process boots in that folder.
    """
    began = time.monotonic()
    folder = planned(site, word, options).folder
    for program in (EMULATOR, "qemu-img"):
        if not find_program(program):
            hint = "Install the packages qemu-system-x86 and qemu-utils."
            raise TargetError(f"{program} is not installed", hint)
    try:
        with ExitStack() as stack:
            with translated(TargetError, f"making {folder}", "Choose another with --state."):
                folders.make_folder(folder)
            with translated(BusyError, f"locking {folder}", "Wait for the other backy boot."):
                stack.enter_context(folders.locked(folder))
            plan = planned(site, word, options, watcher)
            return _Boot(plan, watcher, stack, began).run(options.rate)
    except SourceError as error:
        raise TargetError(f"{word}: {error.message}", f"{_AGAIN} See {folder}/*.log.") from error


class _Boot:
    """One call of boot_job, which holds the lock of the folder."""

    def __init__(self, plan: Plan, watcher: Watcher, stack: ExitStack, began: float) -> None:
        self._plan, self._watcher, self._stack, self._began = plan, watcher, stack, began
        self._server: Detached | None = None
        self._agent_seconds: float | None = None
        self._is_new = False  # whether this call started the VM

    def run(self, rate: int) -> Booted:
        """See boot_job."""
        plan = self._plan
        self._hold()
        partial = self._prepare()
        if partial:
            self._serve()
        monitor = self._monitor(partial)
        sizes = {overlay: plan.revision.disks[name].size for name, overlay in plan.overlays.items()}
        self._watcher.begin(sum(sizes[overlay] for overlay in partial))
        for overlay in partial:
            self._stream(monitor, overlay, sizes[overlay], rate)
        has_shut_down = vm.let_power_off(monitor)
        self._release()
        paths = {name: overlay.path for name, overlay in plan.overlays.items()}
        seconds = time.monotonic() - self._began
        job, revision = plan.repository.name, plan.revision.id
        return Booted(
            job, revision, plan.folder, paths, seconds, self._agent_seconds, has_shut_down
        )

    def _hold(self) -> None:
        """Keep the revision from being removed, also while its server is dead."""
        plan = self._plan
        if plan.hold not in plan.revision.tags:
            try:
                retag(plan.repository, [plan.revision], add={plan.hold}, drop=set())
            except StoreError as error:  # a copy that can only be read
                self._watcher.warn(f"the revision is not protected from purge: {error.message}")

    def _release(self) -> None:
        """End the server, and let the revision go."""
        plan = self._plan
        server = self._server or detached.listening_at(plan.folder / vm.SERVER)
        if server:
            server.stop()
        try:
            retag(plan.repository, [plan.revision], add=set(), drop={plan.hold})
        except (StoreError, NotFoundError) as error:
            self._watcher.warn(f"the tag {plan.hold} is left: {error.message}")

    def _prepare(self) -> list[vm.Overlay]:
        """Make the overlays that are not there yet; return those that still need the server."""
        plan = self._plan
        is_started = plan.state is not None and plan.state.is_started
        if not is_started:
            self._remember(is_started=False)
        partial = []
        for name, overlay in plan.overlays.items():
            if not overlay.path.exists():
                if is_started:
                    why = f"{overlay.path} is missing, which had what the guest wrote"
                    raise TargetError(why, f"Bring it back, or remove {plan.folder} to begin anew.")
                self._make(overlay, plan.revision.disks[name].size)
            backing = overlay.backing()
            if not overlay.is_of(backing) and (backing or not is_started):
                why = f"{overlay.path} is not of this revision: it needs {backing or 'nothing'}"
                raise TargetError(why, "Use another folder with --state.")
            if backing:
                partial.append(overlay)
        return partial

    def _make(self, overlay: vm.Overlay, size: int) -> None:
        new = overlay.path.with_name(f".{overlay.path.name}.new")
        with translated(TargetError, f"making {overlay.path}"):
            folders.remove_file(new)
            vm.run_image_tool(overlay.creation(new, size))
            folders.allow(new, 0o600)  # qemu-img lets everybody read it
            with files.open_to_write(new) as file:
                file.sync()
            folders.rename(new, overlay.path)
            folders.sync_folder(overlay.path.parent)

    def _remember(self, *, is_started: bool) -> None:
        """Write boot.json, and the variables of UEFI, which are the VM's from then on."""
        plan = self._plan
        state = plan.state or State(plan.repository.name, plan.revision.id, plan.asked)
        state = replace(state, is_started=is_started)
        with translated(TargetError, f"writing to {plan.folder}"):
            if plan.firmware and not plan.variables.exists():
                folders.write_file(plan.variables, folders.read_file(plan.firmware[1], MiB))
            folders.write_file(plan.folder / STATE, encode_record(state))

    def _serve(self) -> None:
        """Have a server that runs: the one that an earlier call started, or a new one."""
        if self._server:
            if not self._server.has_ended():
                return
            self._watcher.warn("the server has ended; it is started again")
        path, log = self._plan.folder / vm.SERVER, self._plan.folder / "server.log"
        with translated(TargetError, f"starting the server at {path}"):
            self._server = detached.listening_at(path)
            if not self._server:
                self._server = detached.start(self._plan.server(*_PROGRAM), log)
                self._await(self._server, "backy serve", log, lambda: _listens(path))
            self._stack.callback(self._server.close)

    def _monitor(self, partial: list[vm.Overlay]) -> Monitor:
        """The monitor of the VM that runs, or is started."""
        path, log = self._plan.folder / vm.CONTROL, self._plan.folder / "qemu.log"

        def connected() -> Monitor | None:
            with suppress(NotRunningError):
                return self._stack.enter_context(connect(path, _QMP_SECONDS))
            return None

        if monitor := connected():
            if monitor.status() == "io-error":  # no space was left
                monitor.ask("cont")
            return monitor
        self._remember(is_started=True)
        command = self._plan.emulator(accelerator(), partial)
        with translated(TargetError, "starting QEMU"):
            started = detached.start(command, log)
        self._stack.callback(started.close)
        self._is_new = True
        return self._await(started, "QEMU", log, connected)

    def _await(
        self, program: Detached, name: str, log: Path, look: Callable[[], Found | None]
    ) -> Found:
        """What `look` gives when a program is ready. Raises TargetError if it never is."""
        deadline = time.monotonic() + _START_SECONDS
        while not (found := look()):
            if program.has_ended(within_seconds=0.02) or time.monotonic() > deadline:
                why = f"{self._plan.repository.name}: {name} does not start: {_last_line(log)}"
                raise TargetError(why, f"See {log}.")
        return found

    def _stream(self, monitor: Monitor, overlay: vm.Overlay, size: int, rate: int) -> None:
        """Copy what an overlay does not have yet; keep the server running meanwhile."""
        vm.start_stream(monitor, overlay, rate)
        done, is_whole = 0, False
        while not is_whole:
            signals.sleep(_LOOK_SECONDS)
            self._serve()
            self._greet()
            now, is_whole = vm.streamed(monitor, overlay)
            self._watcher.advance(now - done)
            done = now
        self._watcher.advance(size - done)
        if overlay.backing():
            raise SourceError(f"{overlay.path} still needs the server")

    def _greet(self) -> None:
        """Note when the guest agent answers for the first time."""
        if self._is_new and self._agent_seconds is None:
            with suppress(SourceError):
                with closing(Agent(self._plan.folder / vm.AGENT, _AGENT_SECONDS)):
                    self._agent_seconds = time.monotonic() - self._began
                self._watcher.note(f"the guest agent answers after {self._agent_seconds:.1f} s")


def _listens(path: Path) -> bool:
    if found := detached.listening_at(path):
        found.close()
    return found is not None


def _last_line(log: Path) -> str:
    with suppress(OSError), files.open_to_read(log) as file:
        start = max(file.size() - KiB, 0)
        lines = file.read_bytes(start, KiB).decode(errors="replace").splitlines()
        return lines[-1] if lines else "it says nothing"
    return "it wrote no log"
