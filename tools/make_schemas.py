"""Write docs/schemas/ from the types of messages: python -m tools.make_schemas [DIR]."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from pydantic import BaseModel

from backy.config import settings
from backy.config.settings import Job
from backy.daemon.tasks import VERBS
from backy.model import answers, messages
from tools.make_man import unit_of

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"
SETTINGS = Path(__file__).parent / "settings.toml"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
ONE_VALUE = "What the command prints: one JSON value on one line."
LINES = "One line of what the command prints: it prints one JSON value a line."
SIMPLE = {str: "string", int: "integer", float: "number", bool: "boolean"}


# The settings of a job have types of pydantic. It has its own words for the limits of a number that
# may be null, adds keys that say nothing here, and cannot know what validators refuse.
UNITS = {"size": "In bytes.", "duration": "In seconds."}
WORDS = {"ge": "minimum", "le": "maximum", "multiple_of": "multipleOf"}
LEFT_OUT = {"title", "default"}
REFUSED: Mapping[str, Mapping[str, object]] = {
    "schedule": {"minLength": 1},
    "source": {"additionalProperties": {"description": "A setting of the source."}},
    "command": {"minItems": 1},
    "trash": {"minimum": 0},
}

Schema = dict[str, Any]


@dataclass(frozen=True)
class Output:
    """What a command prints: one of these messages in each line, or one in all."""

    messages: tuple[type, ...]
    description: str = ONE_VALUE


OVERVIEW = Output((answers.StatusAnswer,))
WATCHED = (messages.ProgressEvent, messages.WarningEvent)
COMMANDS = {
    "backup": Output((*WATCHED, messages.NoteEvent, messages.BackupFinished), LINES),
    "boot": Output(
        (*WATCHED, messages.NoteEvent, messages.BootFinished, answers.BootAnswer),
        f"{LINES} With --run print it is one line of the last kind.",
    ),
    "config check": Output(
        (answers.ConfigCheckAnswer,),
        "One JSON value on one line; an error follows on standard error if something is wrong.",
    ),
    "diff": Output((answers.DiffAnswer,)),
    "expire": Output((messages.ExpireFinished,)),
    "find": Output((answers.FindAnswer,)),
    "history": Output((answers.HistoryAnswer,)),
    "jobs": Output((answers.JobsAnswer,)),
    "list": Output(
        (answers.ListAnswer,),
        "One JSON value on one line; an error follows on standard error if a job cannot be read.",
    ),
    "pause": Output((answers.PauseAnswer,)),
    "purge": Output((answers.PurgeAnswer, answers.EraseAnswer)),
    "init": Output((answers.InitAnswer,)),
    "remove": Output((answers.RemoveAnswer,)),
    "reports": Output((answers.ReportsAnswer,)),
    "reports delete": Output((answers.ReportsDeleteAnswer,)),
    "reports show": Output((messages.ReportRecord,)),
    "restore": Output((*WATCHED, messages.NoteEvent, messages.RestoreFinished), LINES),
    "resume": Output((answers.ResumeAnswer,)),
    "run": Output(
        (answers.RunAnswer,),
        "One line of what the command prints: the first kind if the daemon is running, and "
        "otherwise what backy backup --json prints.",
    ),
    "scrub": Output(
        (*WATCHED, messages.DamageEvent, messages.ScrubFinished),
        f"{LINES} Jobs come one after the other, and each ends with a line that names it.",
    ),
    "serve": Output((answers.ServeAnswer,), "One JSON value on one line, when it listens."),
    "status": OVERVIEW,
    "tag": Output((answers.TagAnswer,)),
    "top": OVERVIEW,
    "undo": Output((answers.UndoAnswer,)),
    "verify": Output((*WATCHED, messages.DamageEvent, messages.VerifyFinished), LINES),
}
# Types with a file of their own, to which the others refer: its name and title.
SHARED: Mapping[type, tuple[str, str]] = {
    messages.ErrorEvent: ("error", "Why a command failed"),
    messages.ReportRecord: ("report", "A report of damage, as the commands describe it"),
    messages.RevisionRecord: (
        "revision",
        "A revision, as revision.json and the commands describe it",
    ),
}


def main() -> None:
    """Write all files into the folder that the command line names, else into docs/schemas/."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SCHEMAS
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (folder / name).write_text(text)


def files() -> dict[str, str]:
    """The text of each file, by its name."""
    made = {name: shared(kind) for kind, (name, _) in SHARED.items()}
    made |= {command.replace(" ", "-"): printed(command) for command in COMMANDS}
    return {
        f"{name}.json": json.dumps(made[name], indent=2, ensure_ascii=False) + "\n"
        for name in sorted(made)
    }


def printed(command: str) -> Schema:
    """The schema of what a command prints."""
    output = COMMANDS[command]
    kinds = [schema_of(each) for each in output.messages]
    if command == "run":
        kinds.append({"$ref": reference("backup")})
    title = f"backy {command} --json"
    return head(command.replace(" ", "-"), title, output.description) | {"oneOf": kinds}


def shared(kind: type) -> Schema:
    """The schema of a type with a file of its own."""
    name, title = SHARED[kind]
    made = described_object(kind)
    return head(name, title, made.pop("description")) | made


def head(name: str, title: str, description: str) -> Schema:
    return {
        "$schema": DIALECT,
        "$id": reference(name),
        "title": title,
        "description": description,
    }


def reference(name: str) -> str:
    return f"urn:backy:schema:{name}"


# From types to schemas.


def schema_of(kind: Any) -> Schema:  # noqa: ANN401 - any form of a type
    """The schema of a type, without a description unless the type brings one."""
    if kind in SHARED:
        return {"$ref": reference(SHARED[kind][0])}
    if kind is answers.JobSettings:
        return settings_of(Job)
    if kind is answers.TaskVerb:
        return literal(*VERBS)
    if is_typeddict(kind):
        return described_object(kind)
    if kind in SIMPLE:
        return {"type": SIMPLE[kind]}
    return FORMS[get_origin(kind)](*get_args(kind))


def annotated(kind: Any, *words: tuple[str, object]) -> Schema:  # noqa: ANN401
    made = dict(words) if "enum" in dict(words) else schema_of(kind) | dict(words)
    return {"description": made["description"]} | made if "description" in made else made


def literal(*values: object) -> Schema:
    return {"const": values[0]} if len(values) == 1 else {"enum": list(values)}


def union(*kinds: Any) -> Schema:  # noqa: ANN401
    return {
        "anyOf": [{"type": "null"} if each is type(None) else schema_of(each) for each in kinds]
    }


def sequence(kind: Any) -> Schema:  # noqa: ANN401
    return {"type": "array", "items": schema_of(kind)}


def pair(*kinds: Any) -> Schema:  # noqa: ANN401
    prefix = [schema_of(each) for each in kinds]
    return {"type": "array", "prefixItems": prefix, "items": False, "minItems": len(kinds)}


def mapping(key: Any, value: Any) -> Schema:  # noqa: ANN401
    made: Schema = {"type": "object"}
    if pattern := schema_of(key).get("pattern"):
        made["propertyNames"] = {"pattern": pattern}
    return made | {"additionalProperties": schema_of(value)}


FORMS: Mapping[object, Callable[..., Schema]] = {
    Annotated: annotated,
    Literal: literal,
    NotRequired: schema_of,
    Union: union,
    type(int | str): union,
    Sequence: sequence,
    tuple: pair,
    Mapping: mapping,
}


def described_object(kind: type) -> Schema:
    """The schema of a message, with the descriptions that its docstring has."""
    description, texts = documentation(kind)
    properties: Schema = {}
    required = []  # kind.__required_keys__ has all: it cannot read annotations that are text
    for key, hint in get_type_hints(kind, include_extras=True).items():
        text = texts.pop(key, "The kind of this line." if key == "event" else "")
        described = {"description": text} if text else {}
        made = schema_of(hint)
        properties[key] = described | {k: v for k, v in made.items() if k not in described}
        if get_origin(hint) is not NotRequired:
            required.append(key)
    if texts:
        raise ValueError(f"{kind.__name__} has no {', '.join(texts)}")
    made = object_schema(properties, required)
    return {"description": description} | made


def object_schema(properties: Schema, required: Sequence[str]) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": [*required],
        "additionalProperties": False,
    }


def documentation(kind: type) -> tuple[str, dict[str, str]]:
    """What a docstring says of the object, and of each key."""
    description, _, rest = cleandoc(kind.__doc__ or "").partition("\n\n")
    entries = re.findall(r"^(\w+): (.+(?:\n  .+)*)", rest, re.MULTILINE)
    return one_line(description), {key: one_line(text) for key, text in entries}


def one_line(text: str) -> str:
    return " ".join(text.split())


# Settings of a job, whose types are pydantic's.


def settings_of(model: type[BaseModel]) -> Schema:
    """The schema of one class of settings, as JSON has them; the manual page has the texts."""
    texts = tomllib.loads(SETTINGS.read_text())[model.__name__]
    fields = {str(field.alias): field for field in model.model_fields.values()}
    properties = {}
    for key, found in model.model_json_schema(mode="serialization")["properties"].items():
        text = one_line(f"{texts[key]} {UNITS.get(unit_of(fields[key]), '')}")
        properties[key] = {"description": text} | tidy(found) | REFUSED.get(key, {})
    description = one_line((model.__doc__ or "").partition("\n\n")[0])
    return {"description": description} | object_schema(properties, [*properties])


def tidy(found: Any) -> Any:  # noqa: ANN401 - JSON
    """A schema of pydantic's in the words of JSON Schema, with its classes in place."""
    if isinstance(found, list):
        return [tidy(each) for each in found]
    if not isinstance(found, dict):
        return found
    if "$ref" in found:
        return settings_of(getattr(settings, found["$ref"].rpartition("/")[2]))
    kept = {key: found[key] for key in sorted(found, key="type".__ne__) if key not in LEFT_OUT}
    return {WORDS.get(key, key): tidy(value) for key, value in kept.items()}


if __name__ == "__main__":
    main()
