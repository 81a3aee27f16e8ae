"""Everything that the source "qemu" creates in QEMU, found by its names and removed."""

from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from backy.clients.qmp import Monitor
from backy.clients.qmp_answers import BlockExport, Job, Node
from backy.errors import SourceError, translated
from backy.sources.checkpoint import CheckpointNames
from backy.sources.scratch import SCRATCH_HINT, is_ours
from backy.system import folders


class QemuObjects:
    """The nodes, jobs, exports, bitmaps and folders of this server's backups of one QEMU.

    Bitmaps have the names of checkpoints. The names of all others begin with `prefix`, which is
    different for each server and each QEMU.
    """

    def __init__(self, names: CheckpointNames, qmp: Path, scratch: Path) -> None:
        self._names = names
        self._scratch = scratch
        owner = f"{names.name('')} {qmp}"
        # The name of a node has at most 31 characters.
        self.prefix = f"backy-{sha256(owner.encode()).hexdigest()[:12]}-"

    def folders(self) -> list[Path]:
        """The folders with scratch images."""
        with translated(SourceError, f"looking into {self._scratch}", SCRATCH_HINT):
            names = folders.list_folder(self._scratch)
            named = [self._scratch / name for name in names if name.startswith(self.prefix)]
            return [folder for folder in named if is_ours(folder)]

    def jobs(self, monitor: Monitor) -> list[str]:
        """The backup jobs."""
        jobs = monitor.query(list[Job], "query-block-jobs")
        return self._ours(job.device for job in jobs)

    def remove_folders(self) -> None:
        """Remove the folders with scratch images. QEMU must not use them any more."""
        for folder in self.folders():
            with translated(SourceError, f"removing {folder}"):
                folders.remove_tree(folder)

    def remove_from(self, monitor: Monitor, is_unwanted: Callable[[str], bool]) -> None:
        """Remove everything from QEMU; of the bitmaps, only those of unwanted revisions."""
        self._stop_exports(monitor)
        jobs = self.jobs(monitor)
        for name in jobs:
            monitor.ask("block-job-cancel", device=name, force=True)
        monitor.wait_until(lambda: not self.jobs(monitor), "a job")
        nodes = monitor.query(list[Node], "query-named-block-nodes")
        for name in self._ours(node.node_name for node in nodes):
            monitor.ask("blockdev-del", node_name=name)
        for node in monitor.query(list[Node], "query-named-block-nodes"):
            # One that is stored in the image below an external snapshot cannot be removed now.
            for name in [bitmap.name for bitmap in node.dirty_bitmaps if not node.ro]:
                revision = self._names.revision_of(name)
                if revision and is_unwanted(revision):
                    monitor.ask("block-dirty-bitmap-remove", node=node.node_name, name=name)
        # QEMU stopped the guest because a scratch image could not grow. Now it can go on.
        if jobs and monitor.status() == "io-error":
            monitor.ask("cont")

    def _stop_exports(self, monitor: Monitor) -> None:
        """Remove our exports; stop the NBD server if it is ours and has no other exports."""
        exports = monitor.query(list[BlockExport], "query-block-exports")
        names = [export.id for export in exports if export.type == "nbd"]
        if self.folders() and all(name.startswith(self.prefix) for name in names):
            try:
                monitor.ask("nbd-server-stop")
            except SourceError as error:
                if "not running" not in error.message:
                    raise
        for name in self._exports(monitor):
            monitor.ask("block-export-del", id=name, mode="hard")
        monitor.wait_until(lambda: not self._exports(monitor), "an export")

    def _exports(self, monitor: Monitor) -> list[str]:
        exports = monitor.query(list[BlockExport], "query-block-exports")
        return self._ours(export.id for export in exports)

    def _ours(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if name.startswith(self.prefix)]
