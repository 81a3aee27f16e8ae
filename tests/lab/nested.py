"""Folders in folders, deeper than a recursive function can walk, or than a path can be long."""

import os
from pathlib import Path


def nested(folder: Path, depth: int = 3000) -> None:
    """Make `depth` folders in `folder`, each in the one before. `rm -rf` can delete them."""
    descriptor = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=descriptor)
        inner = os.open("d", os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(descriptor)
