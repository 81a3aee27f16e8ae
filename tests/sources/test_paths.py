"""A source names the files and devices that a restore must not overwrite by accident."""

from pathlib import Path

import pytest

from backy.sources import open_source

FILES = {"vda": Path("/images/a.img"), "vdb": Path("/dev/vg/b")}
TEXTS = {name: str(path) for name, path in FILES.items()}


@pytest.mark.parametrize(
    ("settings", "paths"),
    [
        pytest.param({"type": "file", "disks": TEXTS}, FILES, id="file"),
        pytest.param(
            {"type": "file", "filename": "/images/a.img"},
            {"vda": Path("/images/a.img")},
            id="file-as-in-backy-2",
        ),
        pytest.param(
            {"type": "image", "disks": {"vda": {"path": "/a.qcow2", "key-file": "/key"}}},
            {"vda": Path("/a.qcow2")},
            id="image",
        ),
        pytest.param(
            {"type": "qemu", "qmp": "/run/qmp", "images": {"vda": "/a.qcow2"}, "scratch": "/room"},
            {"vda": Path("/a.qcow2")},
            id="qemu",
        ),
        pytest.param({"type": "qemu", "qmp": "/run/qmp"}, {}, id="qemu-without-images"),
        pytest.param(
            {"type": "libvirt", "domain": "vm1", "scratch": "/room", "swtpm": "/tpm"},
            {},
            id="libvirt",
        ),
        pytest.param(
            {"type": "rbd", "disks": {"vda": "pool/image"}, "conf": "/ceph.conf"},
            {"vda": "rbd:pool/image"},
            id="rbd",
        ),
        pytest.param(
            {"type": "rbd", "pool": "p", "namespace": "n", "image": "i"},
            {"vda": "rbd:p/n/i"},
            id="rbd-as-in-backy-2",
        ),
        pytest.param(
            {"type": "nbd", "disks": {"vda": "nbd+unix:///a?socket=/run/nbd"}},
            {"vda": "nbd:/run/nbd/a"},
            id="nbd",
        ),
    ],
)
def test_the_paths_of_disks_are_named_and_no_others(
    settings: dict[str, object], paths: dict[str, Path | str]
) -> None:
    assert open_source(settings).paths == paths


def test_any_path_that_is_set_for_a_program_may_be_one_of_a_disk() -> None:
    own = {"disk": "/dev/vg/a", "more": [{"x": "/b"}, "/c", 7], "in": {"deep": {"x": "/d"}}, "n": 1}
    source = open_source({"type": "exec", "command": ["/usr/bin/snap"], "settings": own})
    assert source.paths == {
        "disk": Path("/dev/vg/a"),
        "more.0.x": Path("/b"),
        "more.1": Path("/c"),
        "in.deep.x": Path("/d"),
    }
