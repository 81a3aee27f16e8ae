"""What a saved definition says of a VM, which anybody may have written."""

import os
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from backy.clients.hardware import PROBE, Hardware, accelerator, firmware_for, hardware_of
from backy.clients.vm import Overlay, command_line
from backy.errors import SourceError, TargetError
from tests.lab.needs import absent, need

MIB = 1024**2
DOMAIN = """<domain type='kvm'><memory unit='{unit}'>{memory}</memory><vcpu>{vcpu}</vcpu>
<os {firmware}><type arch='{arch}' machine='{machine}'>hvm</type>{loader}</os>
<devices><emulator>/tmp/evil</emulator><disk><target dev='sda' bus='{bus}'/></disk></devices>
<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'><arg value='-S'/></commandline>
</domain>"""
PLAIN = {
    "unit": "KiB", "memory": "2097152", "vcpu": "4", "firmware": "", "arch": "x86_64",
    "machine": "pc-q35-7.2", "loader": "", "bus": "scsi",
}  # fmt: skip


def said(**changes: str) -> Hardware:
    return hardware_of(DOMAIN.format(**PLAIN | changes).encode())


def test_memory_processors_machine_and_buses_are_taken() -> None:
    assert said() == Hardware(2048 * MIB, 4, "q35", is_uefi=False, buses={"sda": "scsi"})


@pytest.mark.parametrize(
    ("changes", "name", "value"),
    [
        pytest.param({"machine": "pc-i440fx-6.2"}, "machine", "pc", id="an old machine"),
        pytest.param({"machine": "-S"}, "machine", "q35", id="a machine that is an option"),
        pytest.param({"unit": "MiB"}, "memory", 1024 * MIB, id="no unit of libvirt"),
        pytest.param({"memory": "-1"}, "memory", 1024 * MIB, id="less than nothing"),
        pytest.param({"memory": "9" * 5000}, "memory", 1024 * MIB, id="too many digits"),
        pytest.param({"vcpu": "²"}, "processors", 1, id="no ASCII digit"),
        pytest.param({"firmware": "firmware='efi'"}, "is_uefi", True, id="UEFI is chosen"),
        pytest.param({"loader": "<loader type='pflash'/>"}, "is_uefi", True, id="UEFI is named"),
    ],
)
def test_of_each_setting_only_what_makes_sense_is_taken(
    changes: dict[str, str], name: str, value: object
) -> None:
    assert getattr(said(**changes), name) == value


@pytest.mark.parametrize(
    "xml",
    [
        pytest.param(b"<domain", id="cut"),
        pytest.param(b"", id="empty"),
        pytest.param(b"<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>", id="an entity"),
        pytest.param("<!DOCTYPE d []><domain/>".encode("utf-16"), id="a hidden DOCTYPE"),
        pytest.param(DOMAIN.format(**PLAIN | {"arch": "aarch64"}).encode(), id="another machine"),
    ],
)
def test_what_is_no_definition_of_such_a_vm_is_an_error(xml: bytes) -> None:
    with pytest.raises(SourceError, match=r"domain\.xml"):
        hardware_of(xml)


@given(some.binary(max_size=300), some.text(max_size=20))
def test_whatever_is_there_it_is_hardware_or_an_error(xml: bytes, bus: str) -> None:
    for each in (xml, DOMAIN.format(**PLAIN | {"bus": bus}).encode(errors="replace")):
        with suppress(SourceError):
            assert isinstance(hardware_of(each), Hardware)


def test_nothing_of_a_definition_but_known_words_comes_to_the_command_line() -> None:
    hardware = said(machine="q35,evil=on", bus="evil,x=y", arch="x86_64")
    disk = Overlay(Path("/vms/sda.qcow2"), MIB, "vm1/rev/sda", 0, hardware.buses["sda"])
    line = command_line(Path("/vms"), "vm1", hardware, "tcg", disk.arguments(is_whole=True))
    assert "evil" not in " ".join(line)
    assert "/tmp/evil" not in line


def test_commas_in_a_path_do_not_add_options_of_qemu() -> None:
    line = command_line(Path("/a,server=off"), "vm1", Hardware(), "tcg", [])
    assert "unix:/a,,server=off/control.sock,server=on,wait=off" in line
    assert "unix:/a,,server=off/vnc.sock" in line


def test_kvm_is_used_only_where_it_executes_something() -> None:
    need(absent("qemu-system-x86_64"))
    assert accelerator() in {"kvm", "tcg"}


def test_a_bios_without_a_disk_ends_the_probe() -> None:
    need(absent("qemu-system-x86_64"))
    command = ["qemu-system-x86_64", *PROBE, "-accel", "tcg"]
    assert subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == 0


@pytest.mark.parametrize("ends", [0, 1, 134])
def test_the_probe_of_kvm_believes_only_code_that_ran(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ends: int
) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert accelerator() == "tcg"
        return
    emulator = tmp_path / "qemu-system-x86_64"
    emulator.write_text(f"#!/bin/sh\nexit {ends}\n")
    emulator.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert accelerator() == ("kvm" if ends == 0 else "tcg")


def test_uefi_is_of_the_size_of_the_saved_variables() -> None:
    need(None if Path("/usr/share/OVMF/OVMF_VARS_4M.fd").exists() else "ovmf is not installed")
    for suffix in ("_4M", ""):
        variables = Path(f"/usr/share/OVMF/OVMF_VARS{suffix}.fd")
        if variables.exists():
            code, found = firmware_for(variables.stat().st_size)
            assert (code.name, found) == (f"OVMF_CODE{suffix}.fd", variables)
    with pytest.raises(TargetError, match="no UEFI firmware fits"):
        firmware_for(12345)
