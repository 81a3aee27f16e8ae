"""Keeps a bug in the work for one job from the work for all others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog
from structlog.typing import FilteringBoundLogger


@dataclass(frozen=True, slots=True)
class Fence:
    """The bugs that were met: by job and step, until that step works again. For all threads."""

    log: FilteringBoundLogger = field(default_factory=structlog.get_logger)
    _bugs: dict[str, dict[str, str]] = field(default_factory=dict)

    @contextmanager
    def around(self, job: str, step: str) -> Iterator[None]:
        """The body is one step of the work for one job; a bug in it ends only the body.

        It is logged with its traceback, but not again while it stays the same.
        """
        try:
            yield
        except Exception as error:
            text = f"a bug in backy: {error!r:.200}"
            if self.has(job, step) != text:
                self.log.exception("a bug", job=job, step=step)
            self._bugs.setdefault(job, {})[step] = text
        else:
            if job in self._bugs:
                self._bugs[job].pop(step, None)

    def has(self, job: str, step: str) -> str:
        """The bug in a step; empty if it worked the last time."""
        return self._bugs.get(job, {}).get(step, "")

    def bug(self, job: str) -> str:
        """A bug in any step of a job; empty if all of them worked the last time."""
        return next(iter([*self._bugs.get(job, {}).values()]), "")

    def forget(self, job: str) -> None:
        """The job is gone."""
        self._bugs.pop(job, None)
