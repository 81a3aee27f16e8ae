"""Boot: start a VM from a revision at once, and copy its disks to this machine meanwhile.

A folder on this machine keeps all that a boot is: boot.json, which says of which revision; a qcow2
overlay for each disk, which has what the guest wrote and what was copied already; and the sockets
of QEMU and of `backy serve`, which run apart from this process and outlive it. So the same command
goes on after any of the three was killed. An overlay is never made again once the VM was started.
"""

import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import replace

from backy.clients import vm
from backy.errors import BusyError, NotFoundError, SourceError, StoreError, TargetError, translated
from backy.image.progress import SILENCE, Watcher
from backy.model.messages import BootFinished
from backy.operations.boot_plan import PROGRAMS, STATE, VARIABLES, BootOptions, Plan, State, planned
from backy.operations.site import Site
from backy.repository.records import encode_record
from backy.repository.tags import retag
from backy.system import detached, files, folders, signals
from backy.system.detached import Detached
from backy.system.permissions import find_program, others_may_write
from backy.units import MiB

_PROGRAM = (sys.executable, "-P", "-m", "backy")  # -P: no folder "backy" that happens to be here
_AGAIN = "Run the same command again: it goes on, and nothing that the guest wrote is lost."
_LOOK_SECONDS = 0.25


def boot_job(
    site: Site, word: str, options: BootOptions, *, watcher: Watcher = SILENCE
) -> BootFinished:
    """Start the VM, or find it running, and copy all that it needs to its overlays.

    On return it needs nothing of backy, and goes on. `word` is JOB or JOB@REV. If this raises or
    is killed, the VM and the server go on, and the next call with the same word continues.

    Raises NotFoundError; TargetError if the folder has something else, or if QEMU or the server
    fails; BusyError if another process boots in that folder.
    """
    began = time.monotonic()
    folder = planned(site, word, options).folder
    for program in PROGRAMS[options.run]:
        if not find_program(program):
            hint = "Install the packages qemu-system-x86 and qemu-utils; or libvirt-clients."
            raise TargetError(f"{program} is not installed", hint)
    try:
        with ExitStack() as stack:
            with translated(TargetError, f"making {folder}", "Choose another with --state."):
                folders.make_folder(folder)
                if refusal := others_may_write(folder):
                    why = f"{folder} is not safe for the disks of a VM: {refusal}"
                    raise TargetError(why, "Choose another with --state.")
            with translated(BusyError, f"locking {folder}", "Wait for the other backy boot."):
                stack.enter_context(folders.locked(folder))
            plan = planned(site, word, options, watcher)
            return _Boot(plan, watcher, stack, began).run()
    except SourceError as error:
        raise TargetError(f"{word}: {error.message}", f"{_AGAIN} See {folder}/*.log.") from error


class _Boot:
    """One call of boot_job, which holds the lock of the folder."""

    def __init__(self, plan: Plan, watcher: Watcher, stack: ExitStack, began: float) -> None:
        self._plan, self._watcher, self._stack, self._began = plan, watcher, stack, began
        self._state = plan.state
        self._vm = plan.machine(stack, watcher)
        self._server: Detached | None = None
        self._agent_seconds: float | None = None
        self._is_new = False  # whether this call started the VM

    def run(self) -> BootFinished:
        """See boot_job."""
        plan = self._plan
        if not (plan.folder / STATE).exists():
            self._refuse_what_exists()
        self._hold(is_held=True)
        partial = self._prepare()
        if partial:
            self._serve()
        if not self._vm.find():
            self._remember(replace(self._state, is_started=True))
            self._vm.start(partial)
            self._is_new = True
        self._watcher.begin(sum(overlay.size for overlay in partial))
        for overlay in partial:
            self._copy(overlay)
        has_shut_down, into = self._vm.let_go(), plan.state.into
        with translated(TargetError, "stopping the server"):
            if server := self._server or detached.listening_at(plan.folder / vm.SERVER):
                server.stop()
        self._hold(is_held=False)
        return BootFinished(
            event="finished",
            job=plan.repository.name,
            revision=plan.revision.id,
            disks={each.disk: into.get(each.disk, str(each.path)) for each in plan.overlays},
            shut_down=has_shut_down,
            agent_seconds=self._agent_seconds,
            seconds=time.monotonic() - self._began,
        )

    def _refuse_what_exists(self) -> None:
        """Nothing is done then, not even the revision is held."""
        for overlay in self._plan.overlays:
            if overlay.path.exists():
                raise TargetError(f"{overlay.path} exists", "Use another folder with --state.")
            if overlay.target and overlay.target.exists():
                raise TargetError(f"{overlay.target.word} exists", "Name one that does not.")

    def _hold(self, *, is_held: bool) -> None:
        """Keep the revision from being removed, also while its server is dead; or let it go."""
        plan, tags = self._plan, {self._plan.hold}
        add, drop = (tags, set[str]()) if is_held else (set[str](), tags)
        try:
            retag(plan.repository, [plan.revision], add=add, drop=drop)
        except (StoreError, NotFoundError) as error:  # of a copy that can only be read
            state = "is not protected from purge" if is_held else f"keeps the tag {plan.hold}"
            self._watcher.warn(f"the revision {state}: {error.message}")

    def _prepare(self) -> list[vm.Overlay]:
        """Make the overlays if the VM was never started; return those that need the server."""
        plan = self._plan
        if not plan.state.is_started:
            self._make()
        partial = []
        for overlay in plan.overlays:
            if overlay.disk in self._state.moved:
                folders.remove_file(overlay.path)  # if we were killed before that
                continue
            if not overlay.path.exists():
                why = f"{overlay.path} is missing, which had what the guest wrote"
                raise TargetError(why, f"Bring it back, or remove {plan.folder} to begin anew.")
            if backing := overlay.backing():
                # The path of the socket may be another one.
                if backing.partition("?")[0] != overlay.uri.partition("?")[0]:
                    why = f"{overlay.path} is not of this revision: it needs {backing}"
                    raise TargetError(why, "Use another folder with --state.")
                partial.append(overlay)
        return partial

    def _make(self) -> None:
        plan = self._plan
        self._remember(self._state)  # from now on they are ours
        for overlay in plan.overlays:
            if overlay.target and not overlay.target.exists():
                overlay.target.make(overlay.size)
            with translated(TargetError, f"making {overlay.path}"):
                folders.remove_file(overlay.path)
                overlay.make()
                with files.open_to_write(overlay.path) as file:
                    file.sync()

    def _remember(self, state: State) -> None:
        """Write boot.json, and the variables of UEFI, which are the VM's from then on."""
        plan, self._state = self._plan, state
        variables = plan.folder / VARIABLES
        with translated(TargetError, f"writing to {plan.folder}"):
            if plan.firmware and not variables.exists():
                folders.write_file(variables, folders.read_file(plan.firmware[1], MiB))
            folders.write_file(plan.folder / STATE, encode_record(state))

    def _serve(self) -> None:
        """Have a server that runs: the one that an earlier call started, or a new one."""
        if self._server:
            if not self._server.has_ended():
                return
            self._watcher.warn("the server has ended; it is started again")
        path, log = self._plan.folder / vm.SERVER, self._plan.folder / "server.log"
        command = self._plan.server(*_PROGRAM) + self._vm.server_options()
        with translated(TargetError, "starting the server", f"See {log}."):
            found = detached.listening_at(path)
            self._server = found or detached.start(command, log, path)
        self._stack.callback(self._server.close)

    def _copy(self, overlay: vm.Overlay) -> None:
        """Copy what an overlay does not have yet, or move the disk; keep the server running."""
        self._vm.copy(overlay, self._plan.options.rate)
        done, is_whole = 0, False
        while not is_whole:
            signals.sleep(_LOOK_SECONDS)
            self._serve()
            self._greet()
            now, is_whole = self._vm.progress(overlay)
            self._watcher.advance(now - done)
            done = now
        self._watcher.advance(overlay.size - done)
        if overlay.target:
            moved = (*self._state.moved, overlay.disk)
            self._remember(replace(self._state, moved=moved))
        elif overlay.backing():
            raise SourceError(f"{overlay.path} still needs the server")
        self._vm.finish(overlay)
        if overlay.target:
            folders.remove_file(overlay.path)

    def _greet(self) -> None:
        """Note when the guest agent answers for the first time."""
        if self._is_new and self._agent_seconds is None:
            with suppress(SourceError):
                self._vm.ping()
                self._agent_seconds = time.monotonic() - self._began
                self._watcher.note(f"the guest agent answers after {self._agent_seconds:.1f} s")
