"""The dashboard can be imported anywhere, and asks only for what backy tells."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.contrib.promtool import CONTRIB, promtool, unknown_metrics
from tests.daemon import views

DASHBOARD: dict[str, Any] = json.loads((CONTRIB / "grafana" / "backy.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24


def expressions() -> list[str]:
    asked = [target["expr"] for panel in PANELS for target in panel["targets"]]
    variables = [each for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return asked + [variable["definition"] for variable in variables]


def datasources(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        if "datasource" in value:
            yield value["datasource"]
        for each in value.values():
            yield from datasources(each)
    elif isinstance(value, list):
        for each in value:
            yield from datasources(each)


def test_panels_and_variables_ask_only_for_metrics_that_there_are() -> None:
    for expression in expressions():
        assert "backy_" in expression
        assert not unknown_metrics(expression)


def test_every_metric_is_shown_but_for_times_of_which_the_age_is() -> None:
    asked = " ".join(expressions())
    hidden = {name for name in views.exported() if name not in asked}
    assert hidden == {
        "backy_job_last_success_timestamp_seconds",
        "backy_job_last_verification_timestamp_seconds",
    }


def test_prometheus_understands_what_is_asked(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$\w+", ".*", expression)}
        for number, expression in enumerate(expressions())
        if not expression.startswith("label_values(")
    ]
    path = tmp_path / "panels.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    said = promtool("check", "rules", path)
    assert said.returncode == 0, said.stderr
    assert len(rules) > len(PANELS)


def test_no_data_source_is_hard_coded() -> None:
    found = list(datasources(DASHBOARD))
    assert len(found) > len(PANELS)
    assert all(each == VARIABLE for each in found)
    first = DASHBOARD["templating"]["list"][0]
    assert (first["name"], first["type"], first["query"]) == (
        "datasource",
        "datasource",
        "prometheus",
    )


def test_every_variable_that_is_used_is_defined() -> None:
    text = json.dumps(DASHBOARD)
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    assert used == defined


def test_panels_have_numbers_of_their_own_and_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= WIDTH
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} lies on {taken[x, y]}"
                taken[x, y] = panel["title"]
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_says_what_it_shows_and_in_which_unit(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    letters = [target["refId"] for target in panel["targets"]]
    assert len(set(letters)) == len(letters)


def test_a_unit_is_that_of_the_metrics() -> None:
    """Where all metrics of a graph end with a unit, Grafana has to write it."""
    units = {"seconds": "s", "bytes": "bytes", "ratio": "percentunit"}
    checked = 0
    for panel in PANELS:
        names = {
            name
            for target in panel["targets"]
            for name in re.findall(r"backy_\w+", target["expr"])
            if "count(" not in target["expr"]
        }
        ends = {name.removesuffix("_bucket").rpartition("_")[2] for name in names}
        if panel["type"] == "timeseries" and len(ends) == 1 and ends <= units.keys():
            assert panel["fieldConfig"]["defaults"]["unit"] == units[ends.pop()], panel["title"]
            checked += 1
    assert checked > 5
