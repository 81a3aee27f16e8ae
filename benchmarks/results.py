"""Everything that was measured, as it was measured; medians are taken when it is read."""

from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.measure import Run


@dataclass(slots=True)
class Results:
    """Runs by row and step, other figures by row and name: one of each for every round."""

    runs: dict[str, dict[str, list[Run]]] = field(default_factory=dict)
    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add_run(self, row: str, step: str, run: Run) -> None:
        """Keep one run of a step."""
        self.runs.setdefault(row, {}).setdefault(step, []).append(run)

    def add_figure(self, row: str, name: str, value: float) -> None:
        """Keep a figure that is no time, in bytes unless its name says otherwise."""
        self.figures.setdefault(row, {}).setdefault(name, []).append(value)

    def seconds(self, row: str, step: str) -> list[float]:
        """Seconds of each run of a step; empty where it was not measured."""
        return [run.seconds for run in self._runs(row, step)]

    def median(self, row: str, name: str) -> float | None:
        """Median seconds of a step, or median of a figure; None where there is neither."""
        values = self.seconds(row, name) or self.figures.get(row, {}).get(name, [])
        return median(values) if values else None

    def cpu_seconds(self, row: str, step: str) -> float | None:
        """Median of user and system time together."""
        values = [run.cpu_seconds for run in self._runs(row, step)]
        return median(values) if values else None

    def peak_rss_bytes(self, row: str, step: str | None = None) -> float | None:
        """The highest peak of a step, or of all steps of the row."""
        steps = self.runs.get(row, {}) if step is None else [step]
        peaks = [run.peak_rss_bytes for name in steps for run in self._runs(row, name)]
        return max(peaks, default=None)

    def as_json(self) -> dict[str, Any]:
        """Every single measurement, for programs."""
        return asdict(self)

    def _runs(self, row: str, step: str) -> list[Run]:
        return self.runs.get(row, {}).get(step, [])
