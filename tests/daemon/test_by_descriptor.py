"""The daemon and the commands that it starts reach nothing in a repository by its path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.runner import Argument
from tests.daemon.machine import Server
from tests.lab.needs import absent, need
from tests.lab.strace import touches, traced
from tests.programs import marked

OFTEN = {"often": {"two": {"interval": "1s", "keep": 1}}}


class Traced(Server):
    """One whose daemon runs under strace; -D keeps the daemon the child of the test."""

    def command(self, *arguments: Argument) -> list[str]:
        words = super().command(*arguments)
        return [*traced(self.folder / "strace"), "-D", *words] if "daemon" in arguments else words


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Traced]:
    need(absent("strace"))
    with marked(str(tmp_path)):
        yield Traced(tmp_path)


def test_nothing_in_a_repository_is_reached_by_its_path(server: Traced) -> None:
    server.configure(OFTEN, metrics_file=str(server.folder / "backy.prom"))
    server.job("vm1", schedule="often")
    with server.daemon() as daemon:
        for verb in ("backup", "expire"):
            daemon.logs(event="finished", verb=verb, job="vm1")
    inside = f"{server.base}/vm1/"
    seen = [touch for touch in touches(server.folder / "strace") if touch.path.startswith(inside)]
    assert {"revisions", "chunks", "status.json"} <= {touch.path.split("/")[-1] for touch in seen}
    assert [touch.line for touch in seen if not touch.is_by_descriptor] == []
