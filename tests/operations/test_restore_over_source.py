"""A job's own image or export, typed as the target, is known as its source."""

from pathlib import Path

import pytest

from backy.errors import TargetError
from backy.operations.restore import RestoreOptions, restore_job
from backy.operations.site import Site
from backy.units import MiB
from tests.lab.ceph import Cluster
from tests.lab.repositories import Made
from tests.memory_source import sample
from tests.nbd.servers import unix_server

DISK = sample(MiB)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path / "base")
    made.backup(DISK)
    return made


def refused(made: Made, word: str) -> None:
    """Fail unless only --over-source lets a restore to this target begin."""
    site = Site(made.base)
    with pytest.raises(TargetError, match="is the source of disk") as caught:
        restore_job(site, "vm1", word, RestoreOptions(overwrite=True))
    assert "--over-source" in caught.value.hint
    restore_job(site, "vm1", word, RestoreOptions(over_source=True))


def test_an_export_is_known_however_its_uri_is_written(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "export"
    path.write_bytes(bytes(MiB))
    with unix_server("qemu-nbd", "-f", "raw", "--persistent", "--shared=8", path) as uri:
        made.repository.remember_source({"type": "nbd", "disks": {"vda": uri}})
        refused(made, uri.replace("///", "/"))
    assert path.read_bytes() == DISK


@pytest.mark.parametrize("is_saved", [False, True], ids=["source-rbd", "saved-domain"])
def test_an_image_of_ceph_is_known_with_other_options(
    made: Made, ceph: Cluster, *, is_saved: bool
) -> None:
    image = ceph.create(f"rbd/own-{is_saved}", MiB)
    if is_saved:
        xml = f"<domain><source protocol='rbd' name='{image}'></source></domain>"
        (made.folder(made.repository.find("latest")) / "domain.xml").write_text(xml)
    else:
        made.repository.remember_source({"type": "rbd", "disks": {"vda": image}})
    refused(made, f"rbd:{image}?conf={ceph.conf}")
    restore_job(Site(made.base), "vm1", f"rbd:{image}-new?conf={ceph.conf}")
