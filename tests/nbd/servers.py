"""Real NBD servers, each started for one test on a socket that was listening before it began."""

import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import quote

Argument = str | Path

# A program that was started by systemd for a socket finds it as descriptor 3, and that it is
# meant: https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html
# (Not sh: Debian's takes descriptors of one digit only.)
_ACTIVATE = 'fd=$1; shift; eval "exec 3<&$fd"; exec env LISTEN_FDS=1 LISTEN_PID=$$ "$@"'


@contextmanager
def short_folder() -> Iterator[Path]:
    """An empty folder whose path leaves room for sockets: theirs have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="nbd-") as folder:
        yield Path(folder)


@contextmanager
def running(listener: socket.socket, *command: Argument) -> Iterator["subprocess.Popen[bytes]"]:
    """A server that takes its connections from `listener`, and is ended after the body."""
    number = listener.fileno()
    words = ["bash", "-c", _ACTIVATE, "bash", str(number), *command]
    with subprocess.Popen(words, pass_fds=[number]) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def unix_server(*command: Argument, export: str = "", query: str = "") -> Iterator[str]:
    """The URI of the export `export` of a server on a Unix socket."""
    with short_folder() as folder, closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(folder / "socket"))
        listener.listen()
        with running(listener, *command):
            yield f"nbd+unix:///{quote(export)}?socket={folder}/socket{query}"


@contextmanager
def tcp_server(*command: Argument) -> Iterator[int]:
    """The port of a server on 127.0.0.1."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener, running(listener, *command):
        yield listener.getsockname()[1]


def qemu_nbd(*arguments: Argument, shared: int = 8) -> tuple[Argument, ...]:
    """The command of a qemu-nbd that serves many connections, one after the other or at once."""
    return ("qemu-nbd", "--read-only", "--persistent", f"--shared={shared}", *arguments)


def nbdkit(*arguments: Argument) -> tuple[Argument, ...]:
    """The command of an nbdkit, with the filters before the plugin."""
    return ("nbdkit", "--foreground", *arguments)


class StorageDaemon:
    """A qemu-storage-daemon: exports of one node, told by QMP what to do."""

    def __init__(self, folder: Path, channel: socket.socket) -> None:
        self._folder = folder
        self._lines = channel.makefile("rw")
        self._lines.readline()  # its greeting
        self.ask("qmp_capabilities")

    def close(self) -> None:
        self._lines.close()

    def ask(self, command: str, **arguments: object) -> object:
        """Give what a command of QMP returns."""
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        while True:
            answer = json.loads(self._lines.readline())
            if "event" not in answer:
                assert "return" in answer, answer
                return answer["return"]

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self._folder}/nbd"

    def export(self, name: str, *bitmaps: str) -> str:
        """Export the node "disk" with these bitmaps, which end here, and give the URI."""
        for bitmap in bitmaps:
            self.ask("block-dirty-bitmap-disable", node="disk", name=bitmap)
        wanted = {"type": "nbd", "id": name, "node-name": "disk", "name": name, "bitmaps": bitmaps}
        self.ask("block-export-add", **wanted)
        return self.uri(name)


@contextmanager
def storage_daemon(path: Path, driver: str) -> Iterator[StorageDaemon]:
    """One with the node "disk", a writable image, and an export "guest" to write through."""
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        ours, theirs = socket.socketpair()
        stack.enter_context(ours)
        file = {"driver": "file", "filename": str(path), "discard": "unmap"}
        node = {"driver": driver, "node-name": "disk", "discard": "unmap", "file": file}
        number = theirs.fileno()
        command: list[Argument] = ["qemu-storage-daemon", "--blockdev", json.dumps(node)]
        command += ["--nbd-server", f"addr.type=unix,addr.path={folder}/nbd,max-connections=32"]
        command += ["--export", "type=nbd,id=guest,node-name=disk,name=guest,writable=on"]
        command += ["--chardev", f"socket,id=qmp,fd={number}", "--monitor", "chardev=qmp"]
        process = stack.enter_context(subprocess.Popen(command, pass_fds=[number]))
        stack.callback(process.wait)
        stack.callback(process.terminate)
        theirs.close()
        # The monitor greets when everything on its command line is there.
        yield stack.enter_context(closing(StorageDaemon(folder, ours)))


def write(uri: str, *commands: str) -> None:
    """Run commands of qemu-io, such as "write -P 7 0 64k", on a writable export."""
    words = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "raw", *words, uri], check=True, stdout=subprocess.DEVNULL)


def content_of(uri: str) -> bytes:
    """What nbdcopy reads there."""
    return subprocess.run(["nbdcopy", uri, "-"], check=True, capture_output=True).stdout


def map_of(uri: str, context: str = "base:allocation") -> list[tuple[int, int, int]]:
    """The start, the length and the flags of each extent, as nbdinfo finds them."""
    command = ["nbdinfo", f"--map={context}", "--json", uri]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [(each["offset"], each["length"], each["type"]) for each in found]


def certificates(folder: Path) -> Path:
    """An authority, and keys of a server called "localhost" and of a client, in a new folder."""
    folder.mkdir()
    for name, content in _certificates().items():
        (folder / name).write_bytes(content)
    return folder


@cache
def _certificates() -> dict[str, bytes]:
    """Made by openssl, once: that takes half a second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _certify(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def _certify(folder: Path) -> None:
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    steps = [f"req -x509 {key} -keyout ca-key.pem -out ca-cert.pem -subj /CN=ca"]
    for name in ("server", "client"):
        ca = "-CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -extfile names"
        steps.append(f"req {key} -keyout {name}-key.pem -out {name}.csr -subj /CN={name}")
        steps.append(f"x509 -req -in {name}.csr -out {name}-cert.pem {ca}")
    for step in steps:
        subprocess.run(["openssl", *step.split()], check=True, capture_output=True, cwd=folder)
