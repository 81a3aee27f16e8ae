"""Every kind of source can be typed after --source."""

from __future__ import annotations

from pathlib import Path

import pytest

from backy.cli import values
from backy.errors import ConfigError, UsageError
from backy.sources import open_source
from backy.sources.typed import typed_source

HERE = Path.cwd()
TYPED = {
    "/images/a.img": ("file", {"vda": "/images/a.img"}),
    "a.img": ("file", {"vda": f"{HERE}/a.img"}),
    "sda=/images/a.img": ("file", {"sda": "/images/a.img"}),
    "file:rbd:x": ("file", {"vda": f"{HERE}/rbd:x"}),
    "./rbd:x": ("file", {"vda": f"{HERE}/rbd:x"}),
    "c:disk.img": ("file", {"vda": f"{HERE}/c:disk.img"}),
    "image:a.qcow2": ("image", {"vda": f"{HERE}/a.qcow2"}),
    "qcow2:/dev/vg/a": ("image", {"vda": {"path": "/dev/vg/a", "format": "qcow2"}}),
    "sda=raw:/a=b": ("image", {"sda": {"path": "/a=b", "format": "raw"}}),
    "rbd:pool/a": ("rbd", {"vda": {"pool": "pool", "image": "a"}}),
    "sda=rbd:p/n/my vm": ("rbd", {"sda": {"pool": "p", "namespace": "n", "image": "my vm"}}),
    "nbd://host/a": ("nbd", {"vda": "nbd://host/a"}),
    "sda=nbd+unix:///a?socket=/s": ("nbd", {"sda": "nbd+unix:///a?socket=/s"}),
}
WHOLE: dict[str, dict[str, object]] = {
    "qemu:/run/qmp": {"type": "qemu", "qmp": "/run/qmp"},
    "libvirt:vm1": {"type": "libvirt", "domain": "vm1"},
    "exec:/bin/snap": {"type": "exec", "command": ["/bin/snap"]},
}


def settings_of(*words: str) -> dict[str, object]:
    return typed_source([values.disk_place(word) for word in words])


@pytest.mark.parametrize("word", TYPED)
def test_a_disk_is_typed_with_its_kind(word: str) -> None:
    kind, disks = TYPED[word]
    assert settings_of(word) == {"type": kind, "disks": disks}
    open_source(settings_of(word))


@pytest.mark.parametrize("word", WHOLE)
def test_a_machine_is_typed_with_its_kind(word: str) -> None:
    assert settings_of(word) == WHOLE[word]
    open_source(settings_of(word))


def test_every_kind_of_source_can_be_typed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sources" / "README.md").read_text()
    kinds = {line.split("`")[1] for line in page.splitlines() if line.startswith("| [`")}
    assert {kind for kind, _ in TYPED.values()} | {str(s["type"]) for s in WHOLE.values()} == kinds


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["/a", "rbd:p/a"], "of one type, not of file and rbd"),
        (["libvirt:a", "libvirt:b"], "all disks"),
        (["sda=qemu:/a"], "all disks"),
        (["sda=/a", "sda=/b"], "two sources for disk sda"),
        (["/a", "vda=/b"], "two sources for disk vda"),
    ],
    ids=str,
)
def test_what_does_not_fit_together_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        settings_of(*words)
    assert caught.value.hint


@pytest.mark.parametrize(
    "word", ["qcow2:", "image:", "file:", "rbd:a", "rbd:a/b/c/d", "rbd:a/b@c", "nbd:a", "libvirt:"]
)
def test_a_place_that_can_be_none_is_refused(word: str) -> None:
    with pytest.raises(ConfigError):
        open_source(settings_of(word))


def test_any_number_of_disks_gets_names_as_linux_counts() -> None:
    disks = settings_of(*(f"/{number}" for number in range(710)))["disks"]
    assert isinstance(disks, dict)
    names = list(disks)
    assert [names[at] for at in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        "vda", "vdz", "vdaa", "vdab", "vdaz", "vdba", "vdzz", "vdaaa",
    ]  # fmt: skip
    assert len({*names}) == len(names)
