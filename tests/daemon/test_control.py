"""What the daemon's socket carries: requests, replies, and errors that stay what they are."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backy import errors
from backy.clients import daemon_client
from backy.daemon import control
from backy.daemon.daemon import Daemon
from backy.daemon.log import open_log
from backy.errors import BackyError, ConfigError, SourceError, StoreError
from backy.model.answers import DaemonRequest
from backy.model.messages import ERRORS, error_event, error_from
from tests.daemon.machine import Server

STATUS = DaemonRequest(do="status")
Reply = Mapping[str, object]


@contextmanager
def daemon(path: Path, answer: Callable[[Reply], Reply]) -> Iterator[None]:
    """A socket that answers so, in another thread."""
    ready, loops = threading.Event(), []

    async def reply(request: Reply) -> Reply:
        return answer(request)

    async def serve() -> None:
        async with control.listening(path, reply):
            loops.append((asyncio.get_running_loop(), end := asyncio.Event()))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(60)
    try:
        yield
    finally:
        for loop, end in loops:
            loop.call_soon_threadsafe(end.set)
        thread.join()


def test_a_request_gets_its_reply(tmp_path: Path) -> None:
    with daemon(tmp_path / "socket", lambda request: {"asked": request}):
        reply = daemon_client.ask(tmp_path / "socket", DaemonRequest(do="run", job="vm1"))
        assert reply == {"asked": {"do": "run", "job": "vm1"}}


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS)
def test_an_error_keeps_its_kind_its_message_and_its_hint(
    kind: type[BackyError], tmp_path: Path
) -> None:
    def fail(_: Reply) -> Reply:
        raise kind("it failed", "do this")

    with (
        daemon(tmp_path / "socket", fail),
        pytest.raises(BackyError, match="it failed") as caught,
    ):
        daemon_client.ask(tmp_path / "socket", STATUS)
    assert type(caught.value) is kind
    assert (caught.value.exit_code, caught.value.hint) == (kind.exit_code, "do this")


def test_an_error_of_a_plug_in_is_told_as_the_kind_that_it_is_made_from() -> None:
    class OddError(SourceError):
        pass

    assert error_event(OddError("odd"))["error"] == "SourceError"


def test_an_error_that_this_version_does_not_know_is_one_of_the_store() -> None:
    error = error_from({"event": "error", "error": "NewError", "message": "new", "hint": ""})
    assert (type(error), error.message) == (StoreError, "new")


def test_every_kind_of_error_can_be_sent() -> None:
    kinds = {each for each in vars(errors).values() if isinstance(each, type)}
    assert set(ERRORS.values()) == {each for each in kinds if issubclass(each, BackyError)}


def test_without_a_daemon_there_is_no_reply(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    assert daemon_client.ask(path, STATUS) is None
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    assert (daemon_client.status(path), daemon_client.promises(path)) == (None, None)
    assert (daemon_client.run(path, "vm1"), daemon_client.look(path, "vm1")) == (False, False)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="hangs-up"),
        pytest.param(b"{\n", id="garbage"),
        pytest.param(b"[]\n", id="no-object"),
    ],
)
def test_what_answers_something_else_is_an_error_of_the_daemon(
    tmp_path: Path, answer: bytes
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            channel, _ = listener.accept()
            with channel:
                channel.recv(1000)
                channel.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(StoreError, match="does not answer") as caught:
            daemon_client.status(path)
        thread.join()
    assert "journalctl" in caught.value.hint


def test_the_socket_of_a_daemon_that_runs_is_not_taken_away(tmp_path: Path) -> None:
    """It may have another base directory."""
    path = tmp_path / "socket"

    async def take() -> None:
        async with control.listening(path, no_answer):
            pytest.fail("it was taken away")

    async def no_answer(_: Reply) -> Reply:
        return {}

    with daemon(path, lambda _: {"all": "well"}):
        with pytest.raises(ConfigError, match="another server listens there"):
            asyncio.run(take())
        assert talk(path, b"{}\n") == {"all": "well"}


def idle(path: Path) -> socket.socket:
    """A client that says nothing; it waits long enough for any server."""
    channel = socket.socket(socket.AF_UNIX)
    channel.settimeout(60)
    channel.connect(str(path))
    return channel


def test_a_client_that_says_nothing_or_takes_nothing_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_TIMEOUT_SECONDS", 0.2)
    path = tmp_path / "socket"
    with (
        daemon(path, lambda _: {"much": "x" * 30_000_000}),
        idle(path) as silent,
        idle(path) as full,
        idle(path) as slow,
    ):
        full.sendall(b"{}\n")
        slow.sendall(b"{")
        assert (silent.recv(1), slow.recv(1)) == (b"", b"")
        hung_up = select.poll()
        hung_up.register(full, select.POLLRDHUP)
        assert hung_up.poll(60_000)
        taken = 0
        with suppress(ConnectionResetError):
            while more := full.recv(1 << 20):
                taken += len(more)
        assert taken < 30_000_000


def test_many_idle_clients_keep_nobody_from_being_answered(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with daemon(path, lambda _: {"all": "well"}), ExitStack() as stack:
        clients = [stack.enter_context(idle(path)) for _ in range(control._MOST_CLIENTS + 20)]
        assert talk(path, b"{}\n") == {"all": "well"}
        for first in clients[:20]:
            assert first.recv(1) == b""
        clients[-1].sendall(b"{}\n")
        assert clients[-1].recv(5) == b'{"all'


def talk(path: Path, request: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(path))
        channel.sendall(request)
        reply: dict[str, Any] = json.loads(channel.makefile().readline())
        return reply


@pytest.mark.parametrize("request_", [b"{\n", b"[1]\n", b"[" * 60_000 + b"\n", b"\n"])
def test_a_request_that_is_none_is_a_wrong_usage(tmp_path: Path, request_: bytes) -> None:
    with daemon(tmp_path / "socket", dict):
        reply = talk(tmp_path / "socket", request_)
    assert (reply["event"], reply["error"], reply["exit_code"]) == ("error", "UsageError", 2)


def test_a_job_that_is_asked_for_as_soon_as_the_daemon_listens_is_not_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, listening, states = Server(tmp_path), control.listening, list[object]()
    server.job("vm1")

    @asynccontextmanager
    async def asked_at_once(path: Path, answer: control.Answer) -> AsyncIterator[None]:
        async with listening(path, answer):
            assert await answer({"do": "run", "job": "vm1"}) == {"job": "vm1"}
            jobs: Any = (await answer({"do": "status"}))["jobs"]
            states.extend(job["state"] for job in jobs)
            ours._stop()
            yield

    monkeypatch.setattr(control, "listening", asked_at_once)
    ours = Daemon(server.path, None, open_log(as_json=True))
    asyncio.run(ours.run())
    assert states == ["waiting"]
