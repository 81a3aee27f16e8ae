"""The small files that a libvirt domain needs beside its disks, to boot from a restored backup."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import zstandard

from backy.clients.virsh import Domain, Virsh, attribute
from backy.system import files
from backy.units import MiB

_LARGEST = 64 * MiB  # bytes of a file that is saved: the NVRAM of a machine of aarch64
_TPM = {"1.2": "tpm1.2/tpm-00.permall", "2.0": "tpm2/tpm2-00.permall"}  # where swtpm keeps it


def saved_files(
    virsh: Virsh, domain: Domain, swtpm: Path, warnings: list[str]
) -> Iterator[tuple[str, bytes]]:
    """The domain's XML, and the files of its firmware and its TPM: names and contents.

    A file that cannot be read is left out, with a line in `warnings`. Raises SourceError where
    libvirtd fails.
    """
    yield "domain.xml", virsh.call("dumpxml", domain.uuid, "--inactive").encode()
    nvram = domain.xml.findtext("os/nvram", "") or attribute(domain.xml, "os/nvram/source", "file")
    tpm = _TPM.get(attribute(domain.xml, "devices/tpm/backend[@type='emulator']", "version"))
    state = f"{swtpm}/{domain.uuid}/{tpm}" if tpm else ""
    for name, path in (("nvram.fd", nvram.strip()), ("tpm.permall", state)):
        if path:
            try:
                suffix, content = _content(Path(path))
                yield name + suffix, content
            except OSError as error:
                warnings.append(f"{path} was not saved: {error.strerror or error}")


def _content(path: Path) -> tuple[str, bytes]:
    """A suffix for the name, and the content of a file, compressed where it is large.

    A hostile QEMU may have written it, so no link is followed.
    """
    with files.File(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as file:
        content = file.read_bytes(0, _LARGEST + 1)
    is_small = len(content) <= MiB
    packed = content if is_small else zstandard.compress(content)
    if len(content) > _LARGEST or len(packed) > MiB:
        raise OSError("it is too large")
    return "" if is_small else ".zst", packed
