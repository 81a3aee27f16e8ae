"""virsh is asked within bounds, and what it prints may make no sense."""

import errno
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest

from backy.clients.virsh import Domain, Virsh
from backy.errors import SourceError

XML = '<domain id="3"><uuid>u-1</uuid><name>vm1</name></domain>'


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the double of virsh was asked; it prints what is in the file `answer` beside it."""
    (tmp_path / "virsh").write_text(
        f'#!/bin/sh\necho "$3 $4" >>{tmp_path}/log\ncat {tmp_path}/answer\n'
    )
    (tmp_path / "virsh").chmod(0o755)
    (tmp_path / "answer").write_text(XML)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path / "log"


def virsh(domain: str = "vm1") -> Virsh:
    return Virsh("qemu:///system", domain, 20)


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("domain", ["vm1", "u-1"])
def test_a_domain_is_found_by_its_name_and_by_its_uuid(domain: str) -> None:
    found = virsh(domain).domain()
    assert (found.uuid, found.is_active) == ("u-1", True)


@pytest.mark.usefixtures("log")
def test_a_number_is_not_taken_for_the_name_of_a_domain() -> None:
    with pytest.raises(SourceError, match="no domain called 3"):
        virsh("3").domain()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "domain vm1: dumpxml: virsh printed no XML"),
        (b"<domain", "domain vm1: dumpxml: virsh printed no XML"),
        (b"\xff", "domain vm1: dumpxml: virsh printed something else than UTF-8"),
        (b"<domain/>", "there is no domain called vm1"),
    ],
    ids=["nothing", "half", "no-text", "empty"],
)
def test_an_answer_that_makes_no_sense_is_an_error(log: Path, answer: bytes, message: str) -> None:
    (log.parent / "answer").write_bytes(answer)
    with pytest.raises(SourceError, match=message):
        virsh().domain()


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("Running hypervisor: QEMU 7.2.11\n", (7, 2, 11)),
        ("Running hypervisor: QEMU 10.0.2\n", (10, 0, 2)),
        ("Running hypervisor: Xen 4.17\n", (0, 0, 0)),
    ],
)
def test_the_version_of_qemu_is_in_what_it_prints(
    log: Path, answer: str, version: tuple[int, int, int]
) -> None:
    (log.parent / "answer").write_text(answer)
    assert virsh().qemu_version() == version


def test_nothing_is_frozen_where_nobody_could_thaw_it_after_a_kill(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr("backy.system.process._spawn", refuse)
    with (
        pytest.raises(SourceError, match=r"domain vm1: starting the guard .*: no more processes"),
        virsh().frozen(Domain("u-1", Element("domain")), 20),
    ):
        pytest.fail("nobody would thaw it")
    assert not log.exists()


def test_the_guest_is_frozen_during_the_body_and_thawed_after_it(log: Path) -> None:
    (log.parent / "answer").write_text("Froze 2 filesystem(s)\n")
    with virsh().frozen(Domain("u-1", Element("domain")), 20) as failures:
        assert log.read_text() == "domfsfreeze u-1\n"
    assert log.read_text() == "domfsfreeze u-1\ndomfsthaw u-1\n"
    assert failures == []


def test_a_freeze_of_no_file_system_is_a_failure(log: Path) -> None:
    (log.parent / "answer").write_text("Froze 0 filesystem(s)\n")
    with virsh().frozen(Domain("u-1", Element("domain")), 20) as failures:
        pass
    assert failures == ["Froze 0 filesystem(s)"] * 2
