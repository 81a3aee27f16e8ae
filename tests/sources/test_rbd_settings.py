"""An RBD source takes its settings in every form that is documented, and no other."""

import os
from pathlib import Path

import pytest

from backy.errors import ConfigError
from backy.sources import open_source
from backy.sources.rbd import RbdSource


@pytest.mark.parametrize(
    ("settings", "disks"),
    [
        ({"disks": {"vda": "rbd/vm1"}}, {"vda": "rbd/vm1"}),
        ({"disks": {"vda": "rbd/customers/vm1"}}, {"vda": "rbd/customers/vm1"}),
        ({"disks": {"a": {"pool": "rbd", "image": "vm1"}}}, {"a": "rbd/vm1"}),
        (
            {"disks": {"a": {"image": "vm1", "pool": "rbd", "namespace": "n"}, "b": "p/vm2"}},
            {"a": "rbd/n/vm1", "b": "p/vm2"},
        ),
        ({"pool": "rbd", "image": "vm1"}, {"vda": "rbd/vm1"}),
        ({"pool": "rbd", "image": "vm.1", "full-always": True}, {"vda": "rbd/vm.1"}),
        ({"pool": "rbd", "namespace": "n", "image": "vm1"}, {"vda": "rbd/n/vm1"}),
        ({"disks": {"a": {"pool": "my pool", "image": "--id=x y"}}}, {"a": "my pool/--id=x y"}),
        ({"pool": "rbd", "image": "-vm"}, {"vda": "rbd/-vm"}),
    ],
    ids=[
        "image",
        "namespace",
        "mapping",
        "two",
        "backy-2",
        "full-always",
        "backy-2-namespace",
        "odd-names",
        "backy-2-dash",
    ],
)
@pytest.mark.parametrize("kind", ["rbd", "ceph-rbd"])
def test_disks_are_named_in_several_ways(
    kind: str, settings: dict[str, object], disks: dict[str, str]
) -> None:
    source = open_source({"type": kind, **settings})
    assert isinstance(source, RbdSource)
    assert source.settings.disks == disks
    assert source.settings.full_always is settings.get("full-always", False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"disks": {}},
        {"disks": {"vda": "vm1"}},
        {"disks": {"vda": "a/b/c/d"}},
        {"disks": {"vda": "rbd/vm1@snapshot"}},
        {"disks": {"vda": "rbd/--id=admin"}},
        {"disks": {"vda": "--pool/vm1"}},
        {"disks": {"vda": "rbd/vm 1"}},
        {"disks": {"vda": "rbd/vm1\n"}},
        {"disks": {"vda": "rbd//vm1"}},
        {"disks": {"../vda": "rbd/vm1"}},
        {"disks": {"vda": {"pool": "rbd"}}},
        {"disks": {"vda": {"pool": "rbd", "image": "vm1", "size": 3}}},
        {"disks": {"vda": {"pool": "rbd", "image": ""}}},
        {"disks": {"vda": {"pool": "rbd", "image": "vm1@snapshot"}}},
        {"disks": {"vda": {"pool": "rbd", "image": "n/vm1"}}},
        {"disks": {"vda": {"pool": "rbd", "image": "vm\n1"}}},
        {"pool": "rbd/n", "image": "vm1"},
        {"pool": "rbd"},
        {"pool": "rbd", "image": "vm1", "disks": {"vda": "rbd/vm1"}},
        {"disks": {"vda": "rbd/vm1"}, "timeout": 0},
        {"disks": {"vda": "rbd/vm1"}, "conf": "ceph.conf"},
        {"disks": {"vda": "rbd/vm1"}, "user": "-x"},
        {"disks": {"vda": "rbd/vm1"}, "password": "x"},
    ],
    ids=str,
)
def test_other_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        open_source({"type": "rbd", **settings})


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, []),
        ({"user": "backy"}, ["--id=backy"]),
        ({"conf": "/c/prod.conf"}, ["--conf=/c/prod.conf"]),
        ({"cluster": "prod"}, ["--conf=/etc/ceph/prod.conf"]),
        ({"cluster": "a", "conf": "/c/b.conf", "user": "u"}, ["--conf=/c/b.conf", "--id=u"]),
    ],
    ids=["default", "user", "conf", "cluster", "all"],
)
def test_rbd_is_told_which_cluster_and_user(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, object],
    words: list[str],
) -> None:
    (tmp_path / "rbd").write_text(f'#!/bin/sh\necho "$@" >{tmp_path}/said; echo "[]"\n')
    (tmp_path / "rbd").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    source = RbdSource(disks={"vda": "rbd/vm1"}, **settings)
    source.remove_all_except([])
    said = (tmp_path / "said").read_text().split()
    assert said == ["snap", "ls", "--pool=rbd", "--image=vm1", "--format", "json", *words]
