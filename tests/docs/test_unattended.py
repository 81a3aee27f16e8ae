"""docs/unattended.md has every key of the configuration, with the default that the code has."""

from typing import Any

import pytest
import yaml

from backy.config.settings import Config, Global, Hook, Hooks, Interval, Job, Scrub
from tests.docs import markdown

TEXT = (markdown.PROJECT / "docs" / "unattended.md").read_text()
MODELS: dict[str, Any] = {
    "Configuration": Config,
    "global": Global,
    "schedules: an interval": Interval,
    "jobs": Job,
    "jobs: scrub": Scrub,
    "hooks: a hook": Hook,
    "hooks: events": Hooks,
}


def rows(heading: str) -> dict[str, str]:
    """The default of each key, as the page has it."""
    found = markdown.table(markdown.section(TEXT, heading))
    return {row["key"]: row["default"] for row in found}


@pytest.mark.parametrize("heading", MODELS)
def test_every_key_is_documented_and_no_other(heading: str) -> None:
    fields = MODELS[heading].model_fields.items()
    assert set(rows(heading)) == {field.alias or name for name, field in fields}


@pytest.mark.parametrize("heading", MODELS)
def test_the_default_of_the_page_is_that_of_the_code(heading: str) -> None:
    model = MODELS[heading]
    documented = rows(heading)
    required = {key: each for key, each in documented.items() if each == "required"}
    fields = {field.alias: (name, field) for name, field in model.model_fields.items()}
    assert required.keys() == {key for key, (_, field) in fields.items() if field.is_required()}
    needed = {
        "schedule": "x",
        "source": {"type": "file"},
        "interval": 1,
        "keep": 1,
        "command": "/bin/true",
    }
    said = {key: needed[str(key)] for key in required}
    bare = model.model_validate(said)
    for key, text in documented.items():
        if text in {"required", "none"}:
            assert text == "required" or getattr(bare, fields[key][0]) is None, key
        else:
            said[key] = yaml.safe_load(text)
    assert model.model_validate(said) == bare


def test_the_events_of_hooks_are_those_of_the_page() -> None:
    fields = markdown.table(markdown.section(TEXT, "Hooks"))
    events = {each for row in fields for each in row["of event"].split(", ")} - {"all"}
    assert events <= set(rows("hooks: events"))
