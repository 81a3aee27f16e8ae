"""A file server that hangs does not stop the daemon's loop, which shows systemd life."""

import asyncio
import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from backy.config.loader import load
from backy.daemon.state import DaemonState, Setup
from backy.sources import open_source
from tests.daemon.machine import Server


def test_the_loop_itself_never_looks_into_a_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(tmp_path)
    server.job("vm1")
    server.ok("backup", "vm1")
    setup = Setup(load(server.path, open_source).config, server.base, datetime.now(UTC))
    threads: set[threading.Thread] = set()

    def noting(call: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - those of any call
            threads.add(threading.current_thread())
            return call(*arguments, **options)

        return noted

    async def look() -> DaemonState:
        state = DaemonState(setup)
        jobs = state.configure()
        with monkeypatch.context() as patch:
            for name in ("open", "stat", "listdir", "scandir"):
                patch.setattr(os, name, noting(getattr(os, name)))
            await state.look_at(jobs)
        return state

    state = asyncio.run(look())
    assert state.summaries["vm1"].newest
    assert threads
    assert threading.current_thread() not in threads
    assert state.changed() == []
