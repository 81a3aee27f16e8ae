"""The page on monitoring lists every metric and every alert, and no others."""

import re

from tests.contrib.promtool import rules
from tests.daemon import views
from tests.docs import markdown

PAGE = (markdown.PROJECT / "docs" / "monitoring.md").read_text()
METRICS = {row["metric"]: row for row in markdown.table(markdown.section(PAGE, "Metrics"))}
ALERTS = {row["alert"]: row for row in markdown.table(markdown.section(PAGE, "Alerts"))}


def test_the_page_lists_exactly_the_metrics_that_there_are() -> None:
    rows = markdown.table(markdown.section(PAGE, "Metrics"))
    assert sorted(row["metric"] for row in rows) == sorted(views.exported())


def test_the_page_says_of_a_metric_what_it_says_itself() -> None:
    for name, family in views.exported().items():
        assert METRICS[name]["meaning"].startswith(family.text)


def test_the_page_names_the_labels_of_a_metric() -> None:
    for name, family in views.exported().items():
        labels = {label for _, its in family.values for label, _ in its} - {"le"}
        assert METRICS[name]["label"] == ", ".join(sorted(labels))


def test_the_page_gives_the_unit_that_the_name_of_a_metric_has() -> None:
    units = {"timestamp_seconds": "Unix time", "seconds": "seconds", "bytes": "bytes"}
    for name, family in views.exported().items():
        for end, unit in units.items():
            if name.endswith(f"_{end}"):
                assert METRICS[name]["unit"].startswith(unit)
                break
        said = METRICS[name]["unit"]
        assert re.findall(r"counter|histogram", said) == [family.kind] * (family.kind != "gauge")


def test_the_page_lists_exactly_the_alerts_that_there_are_and_how_bad_they_are() -> None:
    said = {name: row["severity"] for name, row in ALERTS.items()}
    assert said == {rule["alert"]: rule["labels"]["severity"] for rule in rules()}
