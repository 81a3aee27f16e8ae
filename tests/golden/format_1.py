"""Two repositories of format 1, one of each store, as the last version before format 2 made them.

They are in format-1-STORE.tar.gz, with holes in the images. `backy backup` made three revisions
of `disks(0)`, `disks(1)` and `disks(2)` with --block-size 64KiB; `backy tag`, `verify` and `remove`
did the rest: the first one is in the trash.
"""

import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent
BLOCK = 65536
JOB = "vm1"


def disks(number: int) -> dict[str, bytes]:
    """The disks of the revision with this number: one of more than 252 blocks, and a small one."""
    text = (b"backy\n" * BLOCK)[:BLOCK]
    blocks = [bytes(BLOCK) if block % 7 else text for block in range(300 + number)]
    for changed in (3, 251, 252, 280)[: 2 * number]:
        blocks[changed] = bytes([number]) * BLOCK
    return {"vda": b"".join(blocks) + b"the end", "data": text + bytes([number])}


def unpacked(store: str, base: Path) -> Path:
    """A base directory with the repository vm1 of this store."""
    archive = FOLDER / f"format-1-{store}.tar.gz"
    subprocess.run(["tar", "-xzf", archive, "-C", base], check=True)
    return base
