"""Every answer of a storage may have any shape: that is a SourceError, and never a bug.

Each client is asked with one answer changed at a time: a part is missing, of another type, null,
huge, cut off, or no text. What is recorded are real answers; what QEMU says is said by a real one.
"""

import copy
import json
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from backy.clients.qmp import connect
from backy.clients.rbd import Rbd
from backy.clients.virsh import Virsh
from backy.errors import SourceError
from backy.sources import Request
from backy.sources.libvirt import LibvirtSource
from backy.sources.qemu import QemuSource
from tests.lab.storage_daemon import needs_storage_daemon, storage_daemon
from tests.lab.watchdog import ends
from tests.memory_source import sample
from tests.snapshots import opened
from tests.sources.test_qemu_hostile import listening

ID = "20261123T004938Z-x7k2"
ODD: tuple[object, ...] = (None, [], {}, "", "x" * 100_000, -1, 2**63, 1.5, True, [None], {"a": []})


def changed(answer: Any) -> Iterator[Any]:  # noqa: ANN401 - JSON
    """The answer with each of its parts missing, and replaced by each odd value."""
    yield from ODD
    items = answer.items() if isinstance(answer, dict) else enumerate(answer)
    for key, value in items if isinstance(answer, (dict, list)) else ():
        for other in [*ODD, *(changed(value) if isinstance(value, (dict, list)) else ())]:
            new = copy.copy(answer)
            new[key] = other
            yield new
        new = copy.copy(answer)
        del new[key]
        yield new


def cut(text: bytes) -> Iterator[bytes]:
    """The text cut off at places, with bytes that are no text, and much longer."""
    yield from (text[: len(text) * part // 4] for part in range(4))
    yield from (b"\xff" + text, text[:10] + b"\xc3\x28" + text[10:], text * 2, b"\0" * 50)
    yield from (b"x" * 2_000_000, b"7" * 40_000, b"[" * 200_000, b"{" * 200_000, b"<a>" * 100_000)


@contextmanager
def refused_or_taken() -> Iterator[None]:
    with ends(60), suppress(SourceError):
        yield


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has a program print these bytes when it is called with this verb, and else what it should."""
    answers = tmp_path / "answers"
    answers.mkdir()

    def say(program: str, **outputs: bytes) -> None:
        path = tmp_path / program
        path.write_text(
            f"#!/bin/sh\nfor word; do [ ! -e {answers}/$word ] || exec cat {answers}/$word; done\n"
        )
        path.chmod(0o755)
        for verb, output in outputs.items():
            (answers / verb.replace("_", "-")).write_bytes(output)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return say


INFO = {"id": "5e2f6b8b4567", "features": ["layering"], "flags": [], "mirroring": {}, "parent": {}}
SNAPSHOTS = [{"id": 4, "name": f"backy-{ID}-s-vda-5e2f", "size": 1 << 20, "protected": False}]
DIFF = [{"offset": 0, "length": 4096, "exists": True}]
RBD_CALLS: dict[str, tuple[object, Callable[[Rbd], object]]] = {
    "ls": (SNAPSHOTS, lambda rbd: rbd.snapshots("a/b")),
    "diff": (DIFF, lambda rbd: rbd.extents("a/b@c", None, 1 << 20)),
}


@pytest.mark.parametrize("verb", RBD_CALLS)
def test_whatever_rbd_prints_is_no_bug(said: Callable[..., None], verb: str) -> None:
    right, call = RBD_CALLS[verb]
    rbd = Rbd("", "", 60)
    said("rbd", **{verb: json.dumps(right).encode()})
    assert call(rbd)
    few = [json.dumps(each).encode() for each in changed(right)][:: 1 if SLOW else 5]
    for output in [*few, *cut(json.dumps(right).encode())]:
        said("rbd", **{verb: output})
        with refused_or_taken():
            call(rbd)


XML = """<domain type='kvm' id='3'><name>vm1</name><uuid>4dea22b3-1d52-4b1b-a3a6-1d1a8b2d4a11</uuid>
<os><nvram>/nowhere</nvram></os><devices><disk type='file' device='disk'>
<driver name='qemu' type='qcow2'/><source file='/nowhere.qcow2'/><target dev='vda' bus='virtio'/>
</disk></devices><seclabel type='dynamic' model='dac'><label>+64055:+64055</label></seclabel>
</domain>"""
VIRSH = {
    "dumpxml": XML.encode(),
    "version": b"Running hypervisor: QEMU 7.2.11\n",
    "domblkinfo": b" Target   Capacity   Allocation   Physical\n vda   1048576   200704   196616\n",
    "domstate": b"running\n",
    "checkpoint_list": f"backy-{ID}-s\n".encode(),
    "backup_dumpxml": b"<domainbackup><server transport='unix' socket='/x'/></domainbackup>",
}
STRANGE = {
    "dumpxml": [
        XML.replace("vda", ""),
        XML.replace("vda", "../../etc"),
        XML.replace("vda", "x" * 5000),
        XML.replace("64055", "9" * 5000),
        XML.replace("64055", "4294967299"),
        XML.replace("id='3'", ""),
        XML.replace("id='3'", "").replace("/nowhere.qcow2", "nowhere"),
        XML.replace("id='3'", "").replace("qcow2'/><s", "'/><s"),
        XML.replace("<nvram>/nowhere", "<nvram>" + "n" * 5000),
        XML.replace("<driver", "<a/><!--"),
        '<?xml version="1.0" encoding="none-such"?>' + XML,
        "<!DOCTYPE a [<!ENTITY b 'bbbb'>" * 20 + XML,
    ],
    "version": ["hypervisor: QEMU " + "9" * 5000 + ".1.1", "hypervisor: QEMU ٣.٣.٣"],
    "domblkinfo": [
        "x" * 1_000_000,
        " ".join("1" * 300_000),
        "vda 1 " + "9" * 5000 + " 1",
        "a b c d",
    ],
}
SLOW = int(os.environ.get("BACKY_ROUNDS", "1")) > 1


@pytest.mark.parametrize("verb", VIRSH)
def test_whatever_virsh_prints_is_no_bug(
    said: Callable[..., None], tmp_path: Path, verb: str
) -> None:
    source = LibvirtSource(
        domain="vm1", server="s", scratch=str(tmp_path / "scratch"), swtpm=str(tmp_path)
    )
    right = VIRSH[verb]
    few = list(cut(right))[:: 1 if SLOW else 3]
    for output in [*few, *(text.encode() for text in STRANGE.get(verb, ()))]:
        said("virsh", **VIRSH | {verb: output})
        with refused_or_taken():
            source.remove_all_except([])
        with refused_or_taken(), opened(source, Request(ID)):
            pass


def test_what_the_disks_hold_is_found_in_the_lines_that_tell_it(said: Callable[..., None]) -> None:
    said("virsh", **VIRSH)
    virsh = Virsh("qemu:///system", "vm1", 60)
    assert virsh.allocated(virsh.domain()) == {"vda": 200704}


class Proxy:
    """Stands between backy and a real monitor, and changes one answer of one command."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.heard: dict[str, Any] = {}
        self.command, self.answer = "", None

    def __call__(self, connection: socket.socket) -> None:
        with socket.socket(socket.AF_UNIX) as qemu:
            qemu.connect(str(self._path))
            asked: dict[object, str] = {}

            def forward() -> None:
                text = b""
                with suppress(OSError):
                    while more := connection.recv(65536):
                        text += more
                        with suppress(ValueError):  # not yet whole; no newline ends it
                            message = json.loads(text)
                            asked[message.get("id")] = message["execute"]
                            qemu.sendall(text)
                            text = b""
                with suppress(OSError):
                    qemu.shutdown(socket.SHUT_RDWR)

            thread = threading.Thread(target=forward)
            thread.start()
            with suppress(OSError):
                for line in qemu.makefile("rb"):
                    connection.sendall(self._line(line, asked))
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _line(self, line: bytes, asked: dict[object, str]) -> bytes:
        message = json.loads(line)
        command = asked.get(message.get("id"), "")
        if command and "return" in message:
            self.heard.setdefault(command, message["return"])
            if command == self.command:
                message["return"] = self.answer
                return json.dumps(message).encode() + b"\n"
        return line


class Late(Proxy):
    """Gives the first `late` clients what is meant for somebody before them, greeting or answer."""

    def __init__(self, path: Path, late: int, place: bytes) -> None:
        super().__init__(path)
        self._late, self._place = late, place

    def _line(self, line: bytes, asked: dict[object, str]) -> bytes:
        if self._place not in line or not self._late:
            return line
        self._late -= 1
        return b'{"error": {"class": "CommandNotFound", "desc": "no"}, "id": "killed"}\n' + line


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short path: that of a Unix socket may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="backy-") as folder:
        yield Path(folder)


@needs_storage_daemon
def test_whatever_qemu_answers_is_no_bug(short: Path) -> None:
    with storage_daemon(short, qa=sample(256 * 1024)) as daemon:
        proxy = Proxy(daemon.socket)
        with listening(short / "proxy", proxy) as path:
            settings = {"qmp": str(path), "disks": ["qa"], "scratch": str(short)}
            source = QemuSource(**settings, server="s", timeout=60)
            hasty = QemuSource(**settings, server="s", timeout=1)

            def use(source: QemuSource) -> None:
                with refused_or_taken(), opened(source, Request(ID)) as snapshot:
                    snapshot.warnings()

            use(source)
            # What other commands return is not looked at.
            recorded = {name: each for name, each in proxy.heard.items() if name[:6] == "query-"}
            assert {"query-version", "query-named-block-nodes", "query-block"} <= recorded.keys()
            tried = 0
            for command, right in recorded.items():
                wrong = list(changed(right))
                for answer in wrong[3 :: 1 if SLOW else 1 + len(wrong) // 3]:
                    proxy.command, proxy.answer = command, answer
                    use(hasty)
                    tried += 1
            assert tried >= 2 * len(recorded)
            proxy.command = ""
            source.remove_all_except([])  # as each backup does first
            with opened(source, Request(ID)) as snapshot:
                assert snapshot.disks["qa"].size == 256 * 1024


@needs_storage_daemon
@pytest.mark.parametrize("place", [b'"QMP"', b'"return"'], ids=["greeting", "answer"])
@pytest.mark.parametrize("late", [1, 2, 3])
def test_what_is_meant_for_a_client_before_us_is_not_taken_for_ours(
    short: Path, late: int, place: bytes
) -> None:
    with (
        storage_daemon(short, qa=sample(4096)) as daemon,
        listening(short / "proxy", Late(daemon.socket, late, place)) as path,
        pytest.raises(SourceError, match="greeting") if late > 2 else nullcontext(),
        connect(path, 10) as monitor,
    ):
        assert monitor.version() > (1, 0, 0)
