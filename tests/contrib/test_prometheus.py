"""The metrics keep to the conventions of Prometheus, and the alerts fire when they have to."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from backy.config.settings import Config
from backy.monitoring.metrics import Metrics
from tests.cli.commands import COMMANDS
from tests.contrib.promtool import RULE_TESTS, RULES, promtool, rules, unknown_metrics
from tests.daemon import views
from tests.docs import markdown

PAGE = (markdown.PROJECT / "docs" / "monitoring.md").read_text()
EXAMPLES = [each.text for each in markdown.blocks(markdown.section(PAGE, "Metrics"))]
ALERTS = {rule["alert"]: rule for rule in rules()}
COMMAND = re.compile(r"\bbacky ([a-z]+)(?: ([a-z]+)\b)?((?: (?:-[\w-]+|\{\{.*?\}\}|[A-Z]+))*)")


def test_the_names_and_texts_are_as_prometheus_wants_them() -> None:
    metrics = Metrics(lambda: views.view(views.busy_job("vm1"), views.new_job("vm2")))
    metrics.observe_wait(5)
    said = promtool("check", "metrics", text=metrics.text())
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"# TYPE backy_x gauge\nbacky_x 1\n", id="no-text"),
        pytest.param(b"# HELP backy_x X.\n# TYPE backy_x counter\nbacky_x 1\n", id="no-total"),
        pytest.param(b"backy_x{ 1\n", id="no-metrics"),
    ],
)
def test_promtool_finds_what_is_not_so(text: bytes) -> None:
    assert promtool("check", "metrics", text=text).returncode != 0


def test_prometheus_takes_the_rules() -> None:
    said = promtool("check", "rules", RULES)
    assert said.returncode == 0, said.stderr
    assert f"{len(ALERTS)} rules found" in said.stdout


def test_each_alert_fires_when_it_has_to_and_not_before() -> None:
    said = promtool("test", "rules", RULE_TESTS)
    assert said.returncode == 0, said.stderr


def test_an_alert_that_does_not_fire_is_found(tmp_path: Path) -> None:
    text = RULES.read_text().replace("failed_in_a_row >= 3", "failed_in_a_row > 3")
    (tmp_path / RULES.name).write_text(text)
    (tmp_path / RULE_TESTS.name).write_text(RULE_TESTS.read_text())
    said = promtool("test", "rules", tmp_path / RULE_TESTS.name)
    assert said.returncode != 0
    assert "BackyJobFailing" in said.stderr + said.stdout


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_is_seen_to_fire_and_not_to_fire(alert: str) -> None:
    """In some of the moments that the tests look at it fires, in others it does not."""
    fires = {
        any(f'"{alert}"' in each["labels"] for each in moment["exp_samples"])
        for test in yaml.safe_load(RULE_TESTS.read_text())["tests"]
        for moment in test.get("promql_expr_test", [])
    }
    assert fires == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_asks_only_for_metrics_that_there_are(alert: str) -> None:
    assert "backy_" in ALERTS[alert]["expr"]
    assert not unknown_metrics(ALERTS[alert]["expr"])


def test_the_tests_of_the_rules_use_only_metrics_that_there_are() -> None:
    for test in yaml.safe_load(RULE_TESTS.read_text())["tests"]:
        for series in test["input_series"]:
            assert not unknown_metrics(series["series"])


def test_a_metric_that_there_is_not_is_found() -> None:
    assert unknown_metrics("rate(backy_job_backups_total[5m]) > backy_slots") == {
        "backy_job_backups_total"
    }


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"] in ({"severity": "warning"}, {"severity": "critical"})
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    assert len(rule["annotations"]["summary"]) < 90
    for text in ("description", "runbook"):
        assert rule["annotations"][text].endswith((".", "{{ $labels.name }}"))


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_of_a_job_names_it_and_its_server(alert: str) -> None:
    texts: dict[str, Any] = ALERTS[alert]["annotations"]
    if "backy_job_" in ALERTS[alert]["expr"]:
        assert "$labels.name" in texts["summary"]
    assert "$labels.instance" in texts["summary"] + texts["description"]


@pytest.mark.parametrize("alert", ALERTS)
def test_a_runbook_names_only_commands_that_there_are(alert: str) -> None:
    for verb, then, rest in COMMAND.findall(ALERTS[alert]["annotations"]["runbook"]):
        command = COMMANDS.get(f"{verb} {then}") or COMMANDS[verb]
        options = {name for parameter in command.params for name in parameter.opts}
        assert {each for each in rest.split() if each.startswith("-")} <= options


@pytest.mark.parametrize("alert", ["BackyJobOverdue", "BackyJobNeverSucceeded"])
def test_no_alert_on_a_missing_backup_needs_a_time_of_success(alert: str) -> None:
    """A job that never succeeded has none, and then nothing would be compared with nothing."""
    assert "last_success" not in ALERTS[alert]["expr"]


def test_prometheus_takes_the_configuration_of_the_page_and_finds_the_rules(tmp_path: Path) -> None:
    (example,) = (each for each in EXAMPLES if "scrape_configs" in each)
    (tmp_path / "prometheus.yml").write_text(example)
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / RULES.name).write_text(RULES.read_text())
    said = promtool("check", "config", tmp_path / "prometheus.yml")
    assert said.returncode == 0, said.stderr
    assert f"{len(ALERTS)} rules found" in said.stdout


def test_the_settings_of_the_page_are_valid_and_prometheus_asks_where_the_daemon_listens() -> None:
    given = [yaml.safe_load(each) for each in EXAMPLES if each.startswith("global:")]
    listen, file = (Config.model_validate(each).global_ for each in given)
    assert listen.metrics_listen
    assert any(listen.metrics_listen in each for each in EXAMPLES if "scrape_configs" in each)
    stale = ALERTS["BackyDown"]["expr"]
    (watched,) = re.findall(r'file=~"(.+?)"', stale)
    assert re.fullmatch(watched, str(file.metrics_file))
