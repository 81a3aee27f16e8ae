"""Metrics for Prometheus, over HTTP or in a file for node_exporter. They judge nothing.

The label of a job is `name`, because Prometheus adds a label `job` to everything it scrapes and
would rename ours. Most lines are written here and not by prometheus_client, which needs 3.3 s of
the daemon's time for 10,000 jobs; this needs 0.3 s.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import resources
from pathlib import Path
from socket import SHUT_RDWR, SOCK_STREAM, getaddrinfo
from threading import Thread
from time import monotonic
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler
from wsgiref.types import StartResponse, WSGIEnvironment

from prometheus_client import Histogram, disable_created_metrics, exposition

from backy import __version__
from backy.errors import ConfigError, translated
from backy.model.answers import PoolUse
from backy.monitoring.space import Space
from backy.repository.summary import Summary
from backy.system import folders

Values = dict[str, float | None]  # by the name of the metric; None is no value
Sample = tuple[str, Values]  # the labels, and the values of the metrics with these labels
_MOST_CLIENTS, _CLIENT_SECONDS = 16, 30
_WAITS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)  # seconds
# The help text of each metric, by its name.
_TEXTS = dict(
    line.split(" ", 1)
    for line in (resources.files("backy.monitoring") / "metrics.txt").read_text().splitlines()
)


def of_job(
    summary: Summary, overdue_seconds: float, scrub_overdue_seconds: float | None, now: datetime
) -> Sample:
    """The metrics of a job.

    `overdue_seconds` is for how long a newer revision has been overdue, `scrub_overdue_seconds`
    for how long some stored byte has been due to be read again; both are 0 in time. The latter is
    None if the job is not scrubbed or nothing is stored.
    """
    status, newest = summary.status, summary.newest
    values: Values = {
        "backy_job_revisions": len(summary.revisions),
        "backy_job_future_revisions": summary.ahead,
        "backy_job_failures_total": status.failures,
        "backy_job_source_lies_total": status.tracking_errors,
        "backy_job_whole_reads_total": status.full_reads,
        "backy_job_failed_in_a_row": status.errors,
        "backy_job_overdue_seconds": overdue_seconds,
        "backy_job_paused": status.paused is not None,
        "backy_job_unreadable": bool(summary.problem),
        "backy_job_distrusted_revisions": len(summary.distrusted),
        "backy_job_reports": summary.reports,
        "backy_job_scrub_overdue_seconds": scrub_overdue_seconds,
    }
    if newest:
        values["backy_job_duration_seconds"] = newest.seconds
        for what in ("read", "changed", "stored", "size"):
            sizes = (getattr(each, what) for each in newest.disks.values())
            values[f"backy_job_{what}_bytes"] = sum(sizes)
    if status.scrubbed and status.scrubbed.total:
        share = status.scrubbed.read / status.scrubbed.total
        values["backy_job_scrub_coverage_ratio"] = share
    times = {"success": newest.time if newest else None, "verification": status.verified}
    for what, time in times.items():
        if time:
            values[f"backy_job_last_{what}_timestamp_seconds"] = time.timestamp()
            values[f"backy_job_last_{what}_age_seconds"] = (now - time).total_seconds()
    return f'{{name="{summary.job}"}}', values  # the names of jobs need no escaping


def of_pool(name: str, pool: PoolUse) -> Sample:
    """How many slots a pool has, how many are in use, and how many tasks wait for one."""
    slots: Values = {"backy_slots": pool["slots"], "backy_slots_in_use": pool["in_use"]}
    return f'{{pool="{name}"}}', slots | {"backy_queued": pool["queued"]}


def of_server(space: Space | None, problem: str, loaded: datetime) -> Iterator[Sample]:
    """The metrics of the server: space, if that is known, and the configuration."""
    inodes = space.inodes if space else None
    values: Values = {
        "backy_free_bytes": space.free if space else None,
        "backy_capacity_bytes": space.capacity if space else None,
        "backy_free_inodes": inodes.free if inodes else None,
        "backy_capacity_inodes": inodes.capacity if inodes else None,
        "backy_configuration_ok": not problem,
        "backy_configuration_loaded_timestamp_seconds": loaded.timestamp(),
    }
    yield "", values
    yield f'{{version="{__version__}"}}', {"backy_build_info": 1}


def _lines(samples: Collection[Sample]) -> Iterator[str]:
    """The text format of Prometheus, which wants all lines of a metric together."""
    for name, text in _TEXTS.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        yield f"# HELP {name} {text}\n# TYPE {name} {kind}\n"
        for labels, values in samples:
            if (value := values.get(name)) is not None:
                yield f"{name}{labels} {+value}\n"


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """An answer is nothing to write down."""


class _Server(exposition.ThreadingWSGIServer):
    """Answers many clients at once, but hangs up on a silent or slow one: each is a descriptor."""

    def __init__(self, host: str, port: int) -> None:
        (family, *_, address), *_ = getaddrinfo(host, port, type=SOCK_STREAM)
        self.address_family = family
        self._since: dict[Any, float] = {}
        super().__init__((str(address[0]), port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A client comes; see BaseServer."""
        self._since[request] = monotonic()
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Hang up on clients that take too long, and if there are too many, on the first ones."""
        now = monotonic()
        for number, (request, since) in enumerate(reversed([*self._since.items()])):
            if number >= _MOST_CLIENTS or now - since > _CLIENT_SECONDS:
                with suppress(OSError):
                    request.shutdown(SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        """A client is served or gone; see BaseServer."""
        self._since.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A client that is gone is no error of ours."""


class Metrics:
    """The metrics of one daemon. `collect` is called for each answer, also from other threads."""

    def __init__(self, collect: Callable[[], Iterable[Sample]]) -> None:
        self._collect = collect
        disable_created_metrics()  # type: ignore[no-untyped-call] # which a histogram would have, too
        text = "How long a task that was due waited for its slot."
        self._waits = Histogram("backy_queue_wait_seconds", text, buckets=_WAITS, registry=None)

    def observe_wait(self, seconds: float) -> None:
        """Count a task that started `seconds` after it was due."""
        self._waits.observe(max(0, seconds))

    def text(self) -> bytes:
        """All metrics, in the text format of Prometheus."""
        lines = "".join(_lines(list(self._collect())))
        return lines.encode() + exposition.generate_latest(self._waits)

    def write(self, path: Path) -> None:
        """Write a file for node_exporter, atomically. Raises ConfigError if that fails."""
        with translated(ConfigError, f"metrics-file: writing {path}", "May backy write there?"):
            folders.write_file(path, self.text(), 0o644)

    @contextmanager
    def served(self, address: str) -> Iterator[int]:
        """Answer at "HOST:PORT" or "[IPV6]:PORT" during the body, which gets the port.

        Raises ConfigError if it cannot listen there.
        """
        host, _, port = address.rpartition(":")
        hint = "Is there another daemon? Write 127.0.0.1:9436, with a port that nobody else has."
        with translated(ConfigError, f"metrics-listen: listening on {address}", hint):
            server = _Server(host.strip("[]"), int(port))
        server.set_app(self._answer)
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _answer(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        text = self.text()
        start_response("200 OK", [("Content-Type", exposition.CONTENT_TYPE_PLAIN_0_0_4)])
        return [text]
