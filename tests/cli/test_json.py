"""What commands print for programs is what docs/schemas/ says, to the last key."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError
from referencing import Registry, Resource

from backy import errors
from tests.cli.commands import COMMANDS
from tests.cli.runner import (
    MIB,
    SMALL,
    Backy,
    Result,
    data,
    environment,
    image,
    leased,
    overwrite,
    ran,
    wait_for,
)

SCHEMAS = Path(__file__).parents[2] / "docs" / "schemas"
SHARED = ["error", "report", "revision"]
NOT_JSON = {
    "check": "prints what the plug-ins of Nagios print",
    "config schema": "prints a JSON Schema, and nothing else",
    "config show": "prints the configuration as JSON, and nothing else",
    "daemon": "prints nothing, and logs",
    "mount": "prints that it is ready, and logs",
}
WITH_JSON = [name for name in COMMANDS if name not in NOT_JSON]


def stem(command: str) -> str:
    """The name of the file with a command's schema, without its suffix."""
    return command.replace(" ", "-")


@cache
def schema(command: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((SCHEMAS / f"{stem(command)}.json").read_text())
    return content


@cache
def validator(name: str) -> Draft202012Validator:
    every = [schema(path.stem) for path in SCHEMAS.glob("*.json")]
    resources = [(each["$id"], Resource.from_contents(each)) for each in every]
    registry: Registry[Any] = Registry().with_resources(resources)
    checker = Draft202012Validator.FORMAT_CHECKER
    return Draft202012Validator(schema(name), registry=registry, format_checker=checker)


def valid(name: str, result: Result) -> list[dict[str, Any]]:
    """Every line, checked; those of `event` fields in their order."""
    records = result.records()
    assert records
    for record in records:
        validator(name).validate(record)
    return records


def valid_error(result: Result) -> dict[str, Any]:
    """What it printed on standard error, checked."""
    record = result.error()
    validator("error").validate(record)
    return record


def events(name: str, result: Result) -> list[str]:
    return [record["event"] for record in valid(name, result)]


def parts(node: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - JSON
    """Every schema within a schema."""
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from parts(child)
    elif isinstance(node, list):
        for child in node:
            yield from parts(child)


def test_every_command_but_these_has_json_for_programs() -> None:
    has = {
        name for name in COMMANDS if any("--json" in each.opts for each in COMMANDS[name].params)
    }
    assert has == set(WITH_JSON)


@pytest.mark.parametrize("command", WITH_JSON)
def test_every_command_has_a_schema(command: str) -> None:
    assert f"backy {command} --json" in schema(command)["title"]


def test_every_schema_belongs_to_a_command_or_to_several() -> None:
    assert {path.stem for path in SCHEMAS.glob("*.json")} == {*map(stem, WITH_JSON), *SHARED}


@pytest.mark.parametrize("name", [*WITH_JSON, *SHARED])
def test_a_schema_is_strict_and_explains_each_field(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$schema"] == Draft202012Validator.META_SCHEMA["$schema"]
    for part in parts(schema(name)):
        if part.get("type") == "object":
            assert part["additionalProperties"] is not True
            assert part["description"]
            assert part.get("properties", {}).keys() >= set(part.get("required", []))
        fields = part.get("properties", {}) if part.get("type") == "object" else {}
        for field, content in fields.items():
            assert content.get("description") or "$ref" in content, field
            is_required = field in part["required"]
            assert is_required or content["description"].startswith("Only "), field
            if content.get("type") in {"integer", "number"}:
                unit = ("bytes", "seconds", "How many")
                assert any(word in content["description"] for word in unit), field


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"new": 1}, id="one-field-more"),
        pytest.param({"job": 5}, id="wrong-type"),
        pytest.param({"seconds": -1}, id="out-of-range"),
        pytest.param({"event": "done"}, id="unknown-event"),
    ],
)
def test_the_schemas_refuse_what_is_not_in_them(
    first_backup: dict[str, Any], change: dict[str, Any]
) -> None:
    with pytest.raises(ValidationError):
        validator("backup").validate(first_backup | change)


@pytest.fixture
def first_backup(backy: Backy, tmp_path: Path) -> dict[str, Any]:
    source = image(tmp_path / "vm1.img", SMALL[1])
    (record,) = valid("backup", backy.ok("backup", "vm1", "--source", source, "--json"))
    return record


def test_a_backup_tells_progress_warnings_and_the_revision(either: Backy, tmp_path: Path) -> None:
    source = image(tmp_path / "vm1.img", data(1))
    either.backup("vm1", source, "--tag", "daily")
    source.write_bytes(data(1, 8 * MIB))
    with leased(source) as lease, either.started("backup", "vm1", "--json") as running:
        lease.wait()
        pause(1.1)
        lease.release()
        result = running.end()
    said = valid("backup", result)
    assert {each["event"] for each in said} == {"progress", "warning", "finished"}
    stored = either.said_of("vm1", either.revisions("vm1")[-1])
    assert stored == said[-1]["revision"]


def pause(seconds: float) -> None:
    """Let time pass for the program, whose events are a second apart."""
    begun = os.times().elapsed
    wait_for(lambda: os.times().elapsed > begun + seconds, "time passes")


def test_a_restore_tells_what_was_read(aged: Backy, tmp_path: Path) -> None:
    result = aged.quiet("restore", "vm1", tmp_path / "new.img", "--json")
    finished = valid("restore", result)[-1]
    assert (finished["size"], finished["read"]) == (200_000, 200_000)
    assert finished["target"] == str(tmp_path / "new.img")
    assert (finished["lost"], finished["healed"]) == ([], [])


def test_a_dry_run_and_the_history_of_restores_are_as_described(
    aged: Backy, tmp_path: Path
) -> None:
    command = ["restore", "vm1", str(tmp_path / "new.img"), "--json"]
    planned = valid("restore", aged.quiet(*command, "--dry-run"))[-1]
    assert (planned["dry_run"], planned["written"], planned["seconds"]) == (
        True,
        len(SMALL[3]),
        None,
    )
    done = valid("restore", aged.quiet(*command))[-1]
    assert (done["dry_run"], done["written"]) == (False, len(SMALL[3]))
    (history,) = valid("history", aged.quiet("history", "vm1", "--json"))
    assert [each["result"] for each in history["restores"]] == ["done"]


def test_a_restore_tells_what_is_lost_and_what_came_from_elsewhere(
    aged: Backy, tmp_path: Path
) -> None:
    middle, new = aged.revisions("vm1")[1:]
    aged.chunk("vm1", new, 1).unlink()  # the source still has it
    aged.chunk("vm1", middle, 1).unlink()
    healed = valid("restore", aged.ok("restore", "vm1", tmp_path / "new.img", "--json"))
    assert [each["event"] for each in healed] == ["warning", "finished"]
    assert (healed[-1]["lost"], healed[-1]["healed"]) == ([], [[65536, 65536]])
    result = aged.run("restore", "vm1", tmp_path / "b.img", "-r", "1", "--keep-going", "--json")
    said = valid("restore", result)
    assert [each["event"] for each in said] == ["warning", "finished"]
    assert (said[1]["lost"], said[1]["healed"]) == ([[65536, 65536]], [])
    assert (valid_error(result)["exit_code"], result.code) == (6, 6)


def test_json_and_a_disk_do_not_share_standard_output(aged: Backy) -> None:
    result = aged.run("restore", "vm1", "-", "--json")
    assert (valid_error(result)["error"], result.code, result.out) == ("UsageError", 2, "")


def test_a_verification_tells_each_damage_and_then_fails(aged: Backy) -> None:
    sound = valid("verify", aged.quiet("verify", "vm1", "--json"))
    assert sound[-1]["revisions"] == aged.revisions("vm1")
    old, middle, new = aged.revisions("vm1")
    for block in (0, 3):
        aged.chunk("vm1", middle, block).unlink()
    (aged.base / "vm1" / "revisions" / old / "revision.json").unlink()
    result = aged.run("verify", "vm1", "--json")
    said = valid("verify", result)
    assert [each["event"] for each in said if each["event"] != "progress"] == [
        "warning",
        "damage",
        "damage",
        "finished",
    ]
    damages = [(each["start"], each["length"]) for each in said if each["event"] == "damage"]
    assert damages == [(0, 65536), (196608, 200_000 - 196608)]
    assert (said[-1]["damaged"], said[-1]["revisions"]) == (3, [middle, new])
    assert said[-1]["healed"] == 0
    assert (valid_error(result)["exit_code"], result.code) == (6, 6)
    (listed,) = valid("list", aged.ok("list", "vm1", "--json"))
    ranges = [list(pair) for pair in damages]
    assert [each["damaged"] for each in listed["jobs"][0]["revisions"]] == [{"vda": ranges}, {}]


def test_a_verification_that_heals_everything_tells_it_and_succeeds(aged: Backy) -> None:
    new = aged.revisions("vm1")[-1]
    aged.chunk("vm1", new, 1).unlink()
    damage, finished = valid("verify", aged.ok("verify", "vm1", "--json"))
    assert (damage["event"], damage["revision"], damage["healed"]) == ("damage", new, "the source")
    assert (finished["damaged"], finished["healed"]) == (0, 1)


def test_a_scrub_tells_what_each_job_has_of_its_promise(aged: Backy, tmp_path: Path) -> None:
    aged.backup("vm2", image(tmp_path / "vm2.img", SMALL[1]))
    middle, new = aged.revisions("vm1")[1:]
    aged.chunk("vm1", middle, 1).unlink()
    aged.chunk("vm1", new, 1).unlink()
    result = aged.run("scrub", "--json")
    said = valid("scrub", result)
    assert (valid_error(result)["exit_code"], result.code) == (6, 6)
    damages = [each for each in said if each["event"] == "damage"]
    healed = {each["revision"]: each["healed"] for each in damages}
    assert healed == {middle: None, new: "the source"}
    jobs = {each["job"]: each for each in said if each["event"] == "finished"}
    assert jobs.keys() == {"vm1", "vm2"}
    assert (jobs["vm1"]["damaged"], jobs["vm1"]["healed"]) == (1, 1)
    assert (jobs["vm2"]["damaged"], jobs["vm2"]["healed"]) == (0, 0)
    for job, size in (("vm1", 600_000), ("vm2", 200_000)):
        assert [jobs[job][sum_] for sum_ in ("read", "total", "within")] == [size] * 3
        assert jobs[job]["oldest_seconds"] < 3600
    (again,) = valid("scrub", aged.ok("scrub", "vm2", "--json"))
    assert (again["read"], again["total"]) == (0, 200_000)


def test_a_scrub_of_an_empty_repository_has_nothing_that_is_old(aged: Backy) -> None:
    aged.quiet("remove", "vm1", "-r", "all")
    (finished,) = valid("scrub", aged.quiet("scrub", "vm1", "--json"))
    assert (finished["total"], finished["oldest_seconds"]) == (0, None)


def test_reports_tell_what_was_damaged_and_where_it_is_kept(aged: Backy) -> None:
    assert valid("reports", aged.quiet("reports", "--json"))[0]["reports"] == []
    middle, new = aged.revisions("vm1")[1:]
    for revision in (middle, new):
        overwrite(aged.chunk("vm1", revision, 1), 100, b"rot")
    aged.refuses(6, "verify", "vm1")
    (listed,) = valid("reports", aged.quiet("reports", "vm1", "--json"))
    reports = {report["revisions"][0]: report for report in listed["reports"]}
    assert reports.keys() == {middle, new}
    assert (reports[middle]["healed"], reports[new]["healed"]) == (None, "the source")
    for report in reports.values():
        assert [Path(path).name for path in report["files"]] == ["stored"]
    assert (reports[middle]["verb"], reports[middle]["job"]) == ("verify", "vm1")
    where = {"revision": middle, "disk": "vda", "start": 65536, "length": 65536}
    assert reports[middle]["occurrences"] == [where]
    ids = {revision: report["id"] for revision, report in reports.items()}
    (shown,) = valid("reports show", aged.quiet("reports", "show", "vm1", ids[middle], "--json"))
    assert shown == reports[middle]
    delete = ["reports", "delete", "vm1", "--json"]
    (gone,) = valid("reports delete", aged.quiet(*delete, "--healed"))
    assert gone["deleted"] == [ids[new]]
    (gone,) = valid("reports delete", aged.quiet(*delete, ids[middle]))
    assert gone["deleted"] == [ids[middle]]
    assert not any(Path(path).exists() for path in shown["files"])


def test_a_list_has_all_jobs_and_what_is_wrong_with_them(aged: Backy, tmp_path: Path) -> None:
    (record,) = valid("list", aged.quiet("list", "--json"))
    assert [len(job["revisions"]) for job in record["jobs"]] == [3]
    aged.backup("vm2", image(tmp_path / "vm2.img", SMALL[1]))
    (aged.base / "vm2" / "repository.json").write_text("{")
    (aged.base / "vm1" / "revisions" / aged.revisions("vm1")[0] / "revision.json").unlink()
    result = aged.run("list", "--json")
    (listed,) = valid("list", result)
    assert [job["job"] for job in listed["jobs"]] == ["vm1"]
    assert len(listed["jobs"][0]["damaged"]) == 1
    assert [job["job"] for job in listed["unusable"]] == ["vm2"]
    assert valid_error(result)["exit_code"] == result.code == 3


def test_commands_of_one_value_print_just_that(aged: Backy) -> None:
    old, middle, new = aged.revisions("vm1")
    (diff,) = valid("diff", aged.quiet("diff", "vm1", "1", "0", "--json"))
    assert (diff["old"], diff["new"]) == (middle, new)
    assert sum(extent["length"] for extent in diff["extents"]) == 200_000
    (find,) = valid("find", aged.quiet("find", "vm1", "--json"))
    assert find["path"].endswith(f"{new}/vda.blocks")
    (tag,) = valid("tag", aged.quiet("tag", "vm1", "-daily", "--json", "-r", "all"))
    assert [each["tags"] for each in tag["revisions"]] == [[], ["upgrade"], []]
    (remove,) = valid("remove", aged.quiet("remove", "vm1", "-r", "first", "--json"))
    assert remove["removed"] == [old]
    (undo,) = valid("undo", aged.quiet("undo", "vm1", "--json"))
    assert undo["restored"] == [old]
    aged.quiet("remove", "vm1", "-r", "first")
    young = ["purge", "vm1", "--older-than", "1h", "--json"]
    assert valid("purge", aged.quiet(*young))[0]["kept"] == [old]
    (purge,) = valid("purge", aged.quiet("purge", "vm1", "--json"))
    assert purge["purged"] == [old]
    assert purge["freed"] > 190_000


CONFIGURATION = """
global: {{socket: {folder}/socket}}
schedules:
  default: {{hourly: {{interval: 1h, keep: 1}}}}
jobs:
  vm1: {{schedule: default, source: {{type: file, filename: {folder}/vm1.img}}, scrub: false}}
  vm2:
    schedule: default
    source: {{type: file, filename: {folder}/vm1.img}}
    hooks: {{after-backup: [{{command: [echo, done]}}, {{command: /nowhere}}]}}
"""


@pytest.fixture
def configuration(aged: Backy, tmp_path: Path) -> Path:
    """With the job of `aged`, and a new one that has hooks."""
    path = aged.base.parent / "backy.yaml"
    path.write_text(CONFIGURATION.format(folder=tmp_path))
    return path


def test_the_configuration_is_told_with_its_defaults(aged: Backy, configuration: Path) -> None:
    use = ["--config", str(configuration)]
    (checked,) = valid("config check", aged.quiet(*use, "config", "check", "--json"))
    warned = [each["key"] for each in checked.pop("warnings")]
    # Not there, and the disk of vm1.
    assert warned == ["jobs.vm2.hooks.after-backup", "jobs.vm2.source"]
    assert checked == {"file": str(configuration), "jobs": 2, "problems": [], "sources": []}
    (told,) = valid("jobs", aged.quiet(*use, "jobs", "--json"))
    assert (told["jobs"]["vm1"]["scrub"], told["not_configured"]) == (False, [])
    assert told["jobs"]["vm2"]["hooks"]["after-backup"][1]["command"] == ["/nowhere"]
    whole = aged.quiet(*use, "config", "show").record()
    assert whole["jobs"] == told["jobs"]
    Draft202012Validator.check_schema(made := aged.quiet("config", "schema").record())
    Draft202012Validator(made).validate(whole)


def test_what_is_wrong_in_the_configuration_is_told_with_its_line(
    aged: Backy, configuration: Path
) -> None:
    configuration.write_text(configuration.read_text().replace("file, f", "file, typo: 1, f", 1))
    result = aged.run("--config", configuration, "config", "check", "--json")
    (told,) = valid("config check", result)
    (problem,) = told["problems"]
    assert (problem["line"], problem["key"], told["jobs"]) == (6, "jobs.vm1.source", 1)
    assert valid_error(result)["exit_code"] == result.code == 3


def test_a_configuration_that_cannot_be_used_is_a_wrong_setting_to_programs(
    aged: Backy, configuration: Path
) -> None:
    configuration.write_text("jobs: 1\nnonsense: 2\n")
    result = aged.run("--config", configuration, *CHECK)
    (told,) = valid("config check", result)
    assert (len(told["problems"]), valid_error(result)["error"]) == (2, "ConfigError")
    result = aged.run("--config", configuration, "jobs", "--json")
    assert (valid_error(result)["error"], result.out) == ("ConfigError", "")


CHECK = ["config", "check", "--json"]


def test_what_hooks_say_is_told_beside_a_backup(aged: Backy, configuration: Path) -> None:
    image(configuration.parent / "vm1.img", SMALL[1])
    said = valid("run", aged.ok("--config", configuration, "run", "vm2", "--json"))
    *notes, finished = [each["event"] for each in said]
    assert (set(notes), finished) == ({"note"}, "finished")
    assert said[0]["message"] == "hook after-backup echo: done"


def test_an_expiry_tells_what_goes_and_why(aged: Backy, configuration: Path) -> None:
    use = ["--config", str(configuration), "expire", "vm1", "--json"]
    told = [valid("expire", aged.quiet(*use, *more))[0] for more in (["--dry-run"], [], [])]
    assert [each["dry_run"] for each in told] == [True, False, False]
    assert told[0]["expired"] == told[1]["expired"] != told[2]["expired"] == []
    assert told[0]["expired"][0]["removed"]


def test_a_deleted_repository_is_told(aged: Backy, configuration: Path) -> None:
    text = configuration.read_text().replace("vm1: {", "vm3: {")
    configuration.write_text(text)
    erase = ["--config", str(configuration), "purge", "--job", "vm1", "--json"]
    assert valid("purge", aged.quiet(*erase)) == [{"job": "vm1", "erased": True}]


def test_without_a_daemon_the_status_is_what_the_repositories_say(
    aged: Backy, configuration: Path
) -> None:
    use = ["--config", str(configuration)]
    (told,) = valid("pause", aged.quiet(*use, "pause", "vm1", "--json"))
    assert told == {"job": "vm1", "state": "paused"}
    (status,) = valid("status", aged.quiet(*use, "status", "--json"))
    assert {row["job"]: row["state"] for row in status["jobs"]} == {"vm1": "paused", "vm2": "new"}
    assert status["problem"] == "the daemon is not running"
    (told,) = valid("resume", aged.quiet(*use, "resume", "vm1", "--json"))
    assert told == {"job": "vm1", "state": "resumed"}
    assert valid("top", aged.quiet(*use, "top", "--json"))[0]["jobs"] == []


def test_with_a_daemon_the_status_has_what_runs_and_the_pools(
    aged: Backy, configuration: Path
) -> None:
    source = image(configuration.parent / "vm1.img", SMALL[1])
    use = ["--config", str(configuration)]
    aged.quiet(*use, "pause", "vm1")  # it would be backed up at once

    def running() -> list[dict[str, Any]]:
        (told,) = valid("top", aged.ok(*use, "top", "--json"))
        return [row for row in told["jobs"] if row["state"] == "running" and row["pid"]]  # started

    with leased(source) as lease, aged.started(*use, "daemon") as daemon:
        wait_for((configuration.parent / "socket").exists, "the daemon listens")
        (told,) = valid("run", aged.ok(*use, "run", "vm2", "--json"))
        assert told == {"job": "vm2", "state": "waiting"}
        lease.wait()
        wait_for(lambda: bool(running()), "the daemon tells what runs")
        (status,) = valid("status", aged.ok(*use, "status", "--json"))
        assert status["pools"]["fast"]["in_use"] == 1
        lease.release()
        daemon.signal(signal.SIGTERM)
        assert daemon.end().code == 0
    assert len(aged.revisions("vm2")) == 1


FAILING = {
    "backup": ["vm1", "--source", "/nowhere"],
    "boot": ["vm2"],
    "restore": ["vm2", "x.img"],
    "verify": ["vm2"],
    "scrub": ["vm2"],
    "reports": ["vm2"],
    "reports show": ["vm1", "20261123T004938Z-3fa1"],
    "reports delete": ["vm1", "20261123T004938Z-3fa1"],
    "list": ["vm2"],
    "diff": ["vm1", "9", "0"],
    "find": ["vm1", "-r", "9"],
    "serve": ["vm2", "--socket", "x.sock"],
    "tag": ["vm1", "+a", "-r", "9"],
    "remove": ["vm1", "-r", "9"],
    "history": ["vm2"],
    "undo": ["vm1"],
    "purge": ["vm2"],
    "expire": ["vm1"],
    "pause": ["vm2"],
    "resume": ["vm2"],
    "run": ["vm2"],
    "init": ["--base-dir", "/dev/null/x"],
    "jobs": [],
    "config check": [],
    "status": [],
    "top": [],
}
# All but these two fail without a configuration, or do without one; they need one that is wrong.
NOWHERE = {"BACKY_CONFIG": "/nowhere/backy.yaml"}


@pytest.mark.parametrize("command", WITH_JSON)
def test_the_error_of_every_command_is_one_line_of_json_on_standard_error(
    aged: Backy, command: str
) -> None:
    env = NOWHERE if command in {"status", "top"} else None
    result = aged.run(*command.split(), *FAILING[command], "--json", env=env)
    error = valid_error(result)
    assert error["exit_code"] == result.code
    assert result.err == f"{json.dumps(error)}\n"
    told = aged.run(*command.split(), *FAILING[command], env=env)
    assert told.err == f"backy: {error['message']}\n  {error['hint']}\n"


@pytest.mark.parametrize("command", WITH_JSON)
def test_wrong_usage_of_every_command_is_told_in_the_same_way(backy: Backy, command: str) -> None:
    result = backy.run(*command.split(), "--nonsense", "--json")
    error = valid_error(result)
    assert (error["error"], error["exit_code"], result.code) == ("UsageError", 2, 2)
    assert "--nonsense" in error["message"]
    assert error["hint"] == f"backy {command} --help shows how to use it."
    assert (result.err, result.out) == (f"{json.dumps(error)}\n", "")


@pytest.mark.parametrize(
    "words", ["--json", "lsit --json", "--nonsense list --json", "config nonsense --json"]
)
def test_wrong_usage_outside_of_a_command_is_told_so_too(backy: Backy, words: str) -> None:
    result = backy.run(*words.split())
    error = valid_error(result)
    assert (error["error"], result.code, result.out) == ("UsageError", 2, "")
    assert result.err == f"{json.dumps(error)}\n"


def test_a_scrub_prints_an_error_for_each_job_that_failed(aged: Backy, tmp_path: Path) -> None:
    aged.backup("vm2", image(tmp_path / "vm2.img", SMALL[1]))
    for job in ("vm1", "vm2"):
        (aged.base / job / "repository.json").write_text("{")
    result = aged.run("scrub", "--json")
    errors = [json.loads(line) for line in result.err.splitlines()]
    for error in errors:
        validator("error").validate(error)
    assert {Path(each["message"].split()[0]).parent.name for each in errors} == {"vm1", "vm2"}
    assert (result.code, result.out) == (3, "")


def test_a_bug_is_told_with_its_traceback() -> None:
    result = ran([sys.executable, "-c", BUG, "list", "--json"], environment())
    error = valid_error(result)
    assert (error["error"], error["exit_code"], result.code) == ("Bug", 70, 70)
    assert error["message"] == "ZeroDivisionError: division by zero"
    assert "cli/jobs.py" in error["traceback"]
    assert (result.err, result.out) == (f"{json.dumps(error)}\n", "")


BUG = """
import sys
from backy.cli import jobs as module, main
module.all_jobs = lambda _: 1 / 0
sys.exit(main())
"""


def subclasses(kind: type[errors.BackyError]) -> Iterator[type[errors.BackyError]]:
    """Those of backy.errors. What a module derives from one of them is told as that one."""
    if kind.__module__ == errors.__name__:
        yield kind
    for each in kind.__subclasses__():
        yield from subclasses(each)


def test_the_schema_has_every_kind_of_error() -> None:
    kinds = {each.__name__: each.exit_code for each in subclasses(errors.BackyError)}
    fields = schema("error")["properties"]
    assert set(fields["error"]["enum"]) == {*kinds, "Bug"}
    assert set(fields["exit_code"]["enum"]) == {*kinds.values(), errors.BUG}
