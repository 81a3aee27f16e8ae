"""Runs promtool, which is Prometheus' own judge of metrics and rules."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.daemon import views
from tests.lab.needs import absent, need

CONTRIB = Path(__file__).parents[2] / "contrib"
RULES = CONTRIB / "prometheus" / "backy.rules.yml"
RULE_TESTS = CONTRIB / "prometheus" / "backy.rules.test.yml"
_METRIC = re.compile(r"\b(?:backy|node)_\w+")
_OF_HISTOGRAM = ("_bucket", "_count", "_sum")


def promtool(*arguments: str | Path, text: bytes = b"") -> subprocess.CompletedProcess[str]:
    need(absent("promtool"))
    said = subprocess.run(["promtool", *arguments], input=text, capture_output=True, check=False)
    return subprocess.CompletedProcess(
        said.args, said.returncode, said.stdout.decode(), said.stderr.decode()
    )


def rules(path: Path = RULES) -> list[dict[str, Any]]:
    """All rules of a file."""
    content = yaml.safe_load(path.read_text())
    return [rule for group in content["groups"] for rule in group["rules"]]


def unknown_metrics(expression: str) -> set[str]:
    """The metrics in an expression that backy does not have."""
    known = views.exported()
    ours = {name for name in _METRIC.findall(expression) if name.startswith("backy_")}
    parts = {
        name + suffix
        for name, family in known.items()
        if family.kind == "histogram"
        for suffix in _OF_HISTOGRAM
    }
    return ours - known.keys() - parts
