"""Metrics say what is on disk and what the daemon does, and nothing of what is no longer there."""

import http.client
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from backy import __version__
from backy.errors import ConfigError
from backy.monitoring import metrics
from backy.monitoring.metrics import Metrics, Sample
from backy.monitoring.space import Space
from backy.repository.status import Scrubbed, Status
from backy.repository.summary import Summary
from tests.daemon import views

IPV4, IPV6 = "127.0.0.1:0", "[::1]:0"
OF_NEWEST = {
    "backy_job_last_success_timestamp_seconds",
    "backy_job_last_success_age_seconds",
    "backy_job_duration_seconds",
    "backy_job_read_bytes",
    "backy_job_changed_bytes",
    "backy_job_stored_bytes",
    "backy_job_size_bytes",
}


def told(*jobs: views.JobView) -> bytes:
    return Metrics(lambda: views.view(*jobs)).text()


def single(text: bytes, name: str, **labels: str) -> float:
    return views.families(text)[name].values[name, frozenset(labels.items())]


def get(host: str, port: int, path: str = "/metrics") -> tuple[int, str | None, bytes]:
    connection = http.client.HTTPConnection(host, port)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type"), answer.read()
    finally:
        connection.close()


def test_all_that_is_known_of_a_job_is_told() -> None:
    assert views.of_job(told(views.busy_job("vm1")), "vm1") == {
        "backy_job_last_success_timestamp_seconds": 1795394978.0,
        "backy_job_last_success_age_seconds": 31222.5,
        "backy_job_last_verification_timestamp_seconds": 1795253400.5,
        "backy_job_last_verification_age_seconds": 172800.0,
        "backy_job_duration_seconds": 12.5,
        "backy_job_read_bytes": 6400.0,
        "backy_job_changed_bytes": 800.0,
        "backy_job_stored_bytes": 240.0,
        "backy_job_size_bytes": 75000.0,
        "backy_job_revisions": 3.0,
        "backy_job_future_revisions": 0.0,
        "backy_job_failures_total": 7.0,
        "backy_job_source_lies_total": 0.0,
        "backy_job_whole_reads_total": 0.0,
        "backy_job_failed_in_a_row": 2.0,
        "backy_job_overdue_seconds": 60.5,
        "backy_job_paused": 1.0,
        "backy_job_unreadable": 0.0,
        "backy_job_distrusted_revisions": 1.0,
        "backy_job_reports": 4.0,
        "backy_job_scrub_coverage_ratio": 0.9,
        "backy_job_scrub_overdue_seconds": 3600.0,
    }


def test_a_job_that_never_succeeded_has_no_success_but_is_told_of() -> None:
    job = replace(views.failing(views.new_job("vm2"), 5), overdue_seconds=90)
    assert views.of_job(told(views.busy_job(), job), "vm2") == {
        "backy_job_revisions": 0.0,
        "backy_job_future_revisions": 0.0,
        "backy_job_failures_total": 0.0,
        "backy_job_source_lies_total": 0.0,
        "backy_job_whole_reads_total": 0.0,
        "backy_job_failed_in_a_row": 5.0,
        "backy_job_overdue_seconds": 90.0,
        "backy_job_paused": 0.0,
        "backy_job_unreadable": 0.0,
        "backy_job_distrusted_revisions": 0.0,
        "backy_job_reports": 0.0,
    }


def test_what_cannot_be_read_is_unreadable_and_no_success() -> None:
    job = views.JobView(Summary("vm1", views.IDS, problem="revision.json was cut short"))
    said = views.of_job(told(job), "vm1")
    assert said["backy_job_unreadable"] == 1
    assert said["backy_job_revisions"] == 3
    assert not OF_NEWEST & said.keys()


@pytest.mark.parametrize(
    ("status", "missing"),
    [
        pytest.param(
            Status(scrubbed=Scrubbed(views.NOW, 10, 5, views.NOW)),
            {
                "backy_job_last_verification_timestamp_seconds",
                "backy_job_last_verification_age_seconds",
            },
            id="never-verified",
        ),
        pytest.param(
            Status(verified=views.NOW), {"backy_job_scrub_coverage_ratio"}, id="never-scrubbed"
        ),
        pytest.param(
            Status(verified=views.NOW, scrubbed=Scrubbed(views.NOW, 0, 0, None)),
            {"backy_job_scrub_coverage_ratio"},
            id="nothing-stored",
        ),
    ],
)
def test_what_never_happened_has_no_metric(status: Status, missing: set[str]) -> None:
    job = views.busy_job()
    everything = views.of_job(told(job), "vm1")
    job = replace(job, summary=replace(job.summary, status=status))
    assert everything.keys() - views.of_job(told(job), "vm1").keys() == missing


def test_a_job_that_is_not_to_be_scrubbed_is_never_late_with_it() -> None:
    job = replace(views.busy_job(), scrub_overdue_seconds=None)
    assert "backy_job_scrub_overdue_seconds" not in views.of_job(told(job), "vm1")


def test_each_job_has_its_own_lines() -> None:
    text = told(*(views.failing(views.new_job(f"vm{errors}"), errors) for errors in range(4)))
    found = views.families(text)["backy_job_failed_in_a_row"].values
    assert {dict(labels)["name"]: value for (_, labels), value in found.items()} == {
        "vm0": 0,
        "vm1": 1,
        "vm2": 2,
        "vm3": 3,
    }


def test_a_job_that_is_gone_disappears() -> None:
    jobs = [views.busy_job("stays"), views.busy_job("goes")]
    made = Metrics(lambda: views.view(*jobs))
    assert views.of_job(made.text(), "goes")
    del jobs[1]
    assert b"goes" not in made.text()
    assert views.of_job(made.text(), "stays")


@pytest.mark.parametrize("name", ["vm-1.example+a@b_c", "Gerät", "仮想", "9"])
def test_every_name_that_a_job_can_have_can_be_read_again(name: str) -> None:
    assert views.of_job(told(views.busy_job(name)), name)["backy_job_revisions"] == 3


def test_the_server_itself_is_told_of() -> None:
    text = told()
    assert single(text, "backy_free_bytes") == 250 * 10**9
    assert single(text, "backy_capacity_bytes") == 10**12
    assert single(text, "backy_configuration_ok") == 1
    assert single(text, "backy_configuration_loaded_timestamp_seconds") == 1795422600.5
    assert single(text, "backy_build_info", version=__version__) == 1


@pytest.mark.parametrize(("pool", "said"), [("fast", (4, 3, 7)), ("slow", (2, 1, 0))])
def test_each_pool_is_told_of(pool: str, said: tuple[int, int, int]) -> None:
    names = ("backy_slots", "backy_slots_in_use", "backy_queued")
    assert tuple(single(told(), name, pool=pool) for name in names) == said


def test_a_broken_configuration_is_told_of() -> None:
    text = Metrics(lambda: views.view(problem="schedules is missing")).text()
    assert single(text, "backy_configuration_ok") == 0


def test_a_file_system_that_does_not_answer_has_no_free_space() -> None:
    text = Metrics(lambda: views.view(space=None)).text()
    for name in ("backy_free_bytes", "backy_capacity_bytes"):
        assert views.families(text)[name].values == {}
    assert single(text, "backy_configuration_ok") == 1


def test_no_space_left_is_a_number() -> None:
    text = Metrics(lambda: views.view(space=Space(10**12, 0))).text()
    assert single(text, "backy_free_bytes") == 0


def test_waits_are_counted_by_how_long_they_were() -> None:
    made = Metrics(views.view)
    for seconds in (-2.0, 0.5, 40, 2 * 3600, 48 * 3600):
        made.observe_wait(seconds)
    family = views.families(made.text())["backy_queue_wait_seconds"]
    values = {
        (name.removeprefix("backy_queue_wait_seconds_"), *dict(labels).values()): value
        for (name, labels), value in family.values.items()
    }
    assert family.kind == "histogram"
    assert values["count",] == 5
    assert values["sum",] == 0.5 + 40 + 50 * 3600
    assert [values["bucket", at] for at in ("1.0", "15.0", "60.0", "14400.0", "+Inf")] == [
        2,
        2,
        3,
        4,
        5,
    ]


def test_waits_of_one_daemon_are_not_those_of_another() -> None:
    one, other = Metrics(views.view), Metrics(views.view)
    one.observe_wait(1)
    name = "backy_queue_wait_seconds"
    assert views.families(other.text())[name].values[f"{name}_count", frozenset()] == 0


def test_only_what_grows_for_ever_is_a_counter() -> None:
    kinds = {name: family.kind for name, family in views.exported().items()}
    assert kinds.pop("backy_queue_wait_seconds") == "histogram"
    for counter in ("failures", "source_lies", "whole_reads"):
        assert kinds.pop(f"backy_job_{counter}_total") == "counter"
    assert set(kinds.values()) == {"gauge"}


def test_every_metric_says_what_it_is_in_a_sentence_of_its_own() -> None:
    texts = [family.text for family in views.exported().values()]
    assert len(set(texts)) == len(texts)
    for text in texts:
        assert re.fullmatch(r"[A-Z0-9][^.]{8,75}\.", text), text


def test_every_metric_that_has_a_text_has_a_value() -> None:
    for name, family in views.exported().items():
        assert family.values, name


def test_the_view_is_asked_for_once_an_answer() -> None:
    """It is made while the daemon works: two of them would not fit together."""
    asked: list[Iterable[Sample]] = []

    def view() -> Iterable[Sample]:
        asked.append(views.view(views.busy_job()))
        return asked[-1]

    made = Metrics(view)
    made.text()
    assert len(asked) == 1


@pytest.fixture(params=[pytest.param(IPV4, id="ipv4"), pytest.param(IPV6, id="ipv6")])
def served(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    made = Metrics(lambda: views.view(views.busy_job("vm1")))
    with made.served(request.param) as port:
        yield request.param.rpartition(":")[0].strip("[]"), port


@pytest.mark.parametrize("path", ["/metrics", "/"])
def test_prometheus_gets_the_text_over_http(served: tuple[str, int], path: str) -> None:
    status, kind, text = get(*served, path)
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert views.of_job(text, "vm1") == views.of_job(told(views.busy_job("vm1")), "vm1")


@pytest.mark.parametrize("address", [IPV4, IPV6])
def test_it_listens_nowhere_else(address: str) -> None:
    with Metrics(views.view).served(address) as port:
        for other in {"127.0.0.1", "127.0.0.2", "::1"} - {address.rpartition(":")[0].strip("[]")}:
            with pytest.raises(ConnectionRefusedError):
                get(other, port)


def test_nobody_listens_any_more_afterwards() -> None:
    made = Metrics(views.view)
    with made.served(IPV4) as port:
        assert get("127.0.0.1", port)[0] == 200
    with pytest.raises(ConnectionRefusedError):
        get("127.0.0.1", port)
    with made.served(f"127.0.0.1:{port}"):  # though connections of the first are in TIME_WAIT
        assert get("127.0.0.1", port)[0] == 200


def test_a_client_that_says_nothing_holds_up_nobody() -> None:
    with Metrics(views.view).served(IPV4) as port:
        silent = socket.create_connection(("127.0.0.1", port))
        assert get("127.0.0.1", port)[0] == 200
    silent.close()


def idle(port: int) -> socket.socket:
    """A client that says nothing; it waits long enough for any server."""
    return socket.create_connection(("127.0.0.1", port), timeout=60)


def test_it_hangs_up_on_a_client_that_says_nothing_or_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metrics, "_CLIENT_SECONDS", 2)  # both ask within them
    with Metrics(views.view).served(IPV4) as port, idle(port) as silent, idle(port) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        assert (silent.recv(1), slow.recv(1)) == (b"", b"")
    assert capfd.readouterr() == ("", "")


def test_many_idle_clients_keep_neither_descriptors_nor_prometheus_from_being_answered() -> None:
    def connections() -> int:
        held = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        return sum(path.is_socket() for path in held)

    with Metrics(views.view).served(IPV4) as port, ExitStack() as stack:
        before = connections()
        clients = [stack.enter_context(idle(port)) for _ in range(metrics._MOST_CLIENTS + 20)]
        assert get("127.0.0.1", port)[0] == 200
        for first in clients[:20]:
            assert first.recv(1) == b""
        # The server's threads close their ends a moment after the clients hear of it.
        most = before + len(clients) + metrics._MOST_CLIENTS + 1
        deadline = time.monotonic() + 60
        while connections() > most and time.monotonic() < deadline:
            time.sleep(0.01)
        assert connections() <= most
        for last in clients[-5:]:
            last.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert last.recv(15).startswith(b"HTTP/1.0 200")


def test_it_stops_listening_where_the_body_fails() -> None:
    with pytest.raises(RuntimeError, match="body"), Metrics(views.view).served(IPV4) as port:
        raise RuntimeError("body")
    with pytest.raises(ConnectionRefusedError):
        get("127.0.0.1", port)


def test_no_answer_is_better_than_a_part_of_it(capfd: pytest.CaptureFixture[str]) -> None:
    broken = [True]

    def view() -> Iterable[Sample]:
        if broken:
            raise RuntimeError("a bug")
        return views.view()

    with Metrics(view).served(IPV4) as port:
        status, _, text = get("127.0.0.1", port)
        assert status == 500
        assert b"backy_" not in text
        broken.clear()
        assert get("127.0.0.1", port)[0] == 200
    assert "RuntimeError: a bug" in capfd.readouterr().err


def test_an_answer_is_nothing_to_write_down(capfd: pytest.CaptureFixture[str]) -> None:
    with Metrics(views.view).served(IPV4) as port:
        get("127.0.0.1", port)
    assert capfd.readouterr() == ("", "")


def test_an_address_that_somebody_has_is_refused_with_what_to_do() -> None:
    made = Metrics(views.view)
    with (
        made.served(IPV4) as port,
        pytest.raises(ConfigError, match=f"127.0.0.1:{port}") as caught,
        made.served(f"127.0.0.1:{port}"),
    ):
        pass
    assert "another daemon" in caught.value.hint


@pytest.mark.parametrize("address", ["203.0.113.1:9436", "[2001:db8::1]:9436"])
def test_an_address_of_another_machine_is_refused(address: str) -> None:
    with (
        pytest.raises(ConfigError, match=re.escape(address)),
        Metrics(views.view).served(address),
    ):
        pass


def test_node_exporter_finds_a_whole_file_that_it_may_read(tmp_path: Path) -> None:
    made = Metrics(lambda: views.view(views.busy_job()))
    before = os.umask(0o077)
    try:
        made.write(tmp_path / "backy.prom")
        made.write(tmp_path / "backy.prom")
    finally:
        os.umask(before)
    assert [path.name for path in tmp_path.iterdir()] == ["backy.prom"]
    assert (tmp_path / "backy.prom").read_bytes() == made.text()
    assert (tmp_path / "backy.prom").stat().st_mode & 0o777 == 0o644


def test_a_file_that_is_being_read_is_not_changed(tmp_path: Path) -> None:
    path = tmp_path / "backy.prom"
    Metrics(lambda: views.view(views.busy_job("old"))).write(path)
    with path.open("rb") as reader:
        Metrics(lambda: views.view(views.busy_job("new"))).write(path)
        assert views.of_job(reader.read(), "old")
    assert views.of_job(path.read_bytes(), "new")


def test_node_exporter_never_sees_a_file_that_is_not_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def sync(_: int) -> None:
        seen.extend(path.name for path in tmp_path.iterdir())

    monkeypatch.setattr(os, "fsync", sync)
    Metrics(views.view).write(tmp_path / "backy.prom")
    assert seen
    assert not [name for name in seen[:1] if name.endswith(".prom")]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "backy.prom"
    with pytest.raises(ConfigError, match=re.escape(str(path))) as caught:
        Metrics(views.view).write(path)
    assert caught.value.hint
