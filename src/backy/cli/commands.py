"""The commands in groups: the module of each one, and the first sentence of its help.

So `backy --help` and completion import no command, and a command imports no other.
"""

from typing import NamedTuple


class Entry(NamedTuple):
    """The module of a command in backy.cli, and the first sentence of its help."""

    module: str
    help: str


GROUPS = {
    "Back up": {
        "backup": Entry("backup", "Back up a VM: make one revision of all its disks."),
        "tag": Entry("revisions", "Add tags to revisions, and remove them."),
    },
    "Look": {
        "list": Entry("jobs", "Show the revisions of a job, or all jobs."),
        "diff": Entry("revisions", "Show which ranges of the disks changed between two revisions."),
        "find": Entry("revisions", "Print the path of a disk's image or index, for scripts."),
    },
    "Restore": {
        "restore": Entry("restore", "Restore one disk, or all disks of a revision."),
        "boot": Entry("boot", "Start a VM from a revision at once, and copy its disks meanwhile."),
        "history": Entry(
            "restore", "Show the restores of a job: what, where to, who asked, and how they ended."
        ),
        "serve": Entry("serve", "Offer disks of revisions over NBD, for reading."),
        "mount": Entry(
            "serve", "Show all revisions as files in a folder, until SIGTERM or fusermount3 -u."
        ),
        "undo": Entry("revisions", "Bring back what the last remove or expire took away."),
    },
    "Care": {
        "verify": Entry("verify", "Read every stored byte again and compare it with its hash."),
        "scrub": Entry("verify", "Read a share of the stored bytes again, and heal damage."),
        "reports": Entry("reports", "Show the damage that was found."),
        "remove": Entry("revisions", "Move revisions to the trash."),
        "expire": Entry("revisions", "Remove the revisions that the schedule does not keep."),
        "purge": Entry("revisions", "Delete removed revisions for good, and free their space."),
    },
    "Run unattended": {
        "init": Entry("daemon", "Make the base directory and the file that marks it as mounted."),
        "config": Entry("config", "Check and show the configuration."),
        "jobs": Entry("jobs", "Show the configured jobs, and the repositories without a job."),
        "daemon": Entry("daemon", "Run all configured jobs, until SIGTERM."),
        "status": Entry("jobs", "Show the state of each job, its backups, and what runs now."),
        "top": Entry("jobs", "Show what runs, what waits, and how many slots are in use."),
        "run": Entry("daemon", "Back up a job now, before all others."),
        "pause": Entry("daemon", "Pause a job: start nothing for it until backy resume."),
        "resume": Entry("daemon", "Continue a job that backy pause stopped."),
        "check": Entry("check", "Check the backups, as a plug-in for Nagios, Icinga or Checkmk."),
    },
}
COMMANDS = {name: entry for group in GROUPS.values() for name, entry in group.items()}
