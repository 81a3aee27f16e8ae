"""Write the manual pages: python -m tools.make_man FOLDER.

FOLDER gets man1/ with a page for the program and one for each of its commands, and man5/ with the
page of the configuration.  The texts are those of --help; for the configuration those of
settings.toml, while types, units and defaults are taken from the code, so that a page cannot say
something else than the program.  Their date is $SOURCE_DATE_EPOCH, else today.
"""

from __future__ import annotations

import os
import re
import sys
import time
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from backy import __version__, errors
from backy.cli.app import program
from backy.cli.commands import COMMANDS
from backy.cli.program import records
from backy.config import settings as config
from backy.operations.site import CONFIG_PATHS

PROGRAM = "backy"
TEXTS = Path(__file__).with_name("settings.toml")
# What roff would take for something else, or print as another character than the one of ASCII.
ESCAPES = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
KINDS = {"boolean": "true or false", "integer": "number", "string": "text"}
UNITS = {"duration": ("1h", 3600), "size": ("1MiB", 1048576)}
DURATIONS = ((604800, "w"), (86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def main() -> int:
    """Write all pages; FOLDER is the only argument."""
    if len(sys.argv) != 2:
        print("usage: python -m tools.make_man FOLDER", file=sys.stderr)
        return 2
    now = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    for name, text in pages(time.strftime("%Y-%m-%d", time.gmtime(now))).items():
        path = Path(sys.argv[1], f"man{name[-1]}", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


def pages(date: str) -> dict[str, str]:
    """The text of every page, by the name of its file."""
    group: Any = whole_program()
    top = group.context_class(group, info_name=PROGRAM, **group.context_settings)
    found = dict(commands(group, top))
    texts = {f"{page(path)}.1": command_page(each, found) for path, each in found.items()}
    texts["backy.yaml.5"] = settings_page()
    return {name: "\n".join([heading(name, date), *text, ""]) for name, text in texts.items()}


def whole_program() -> Any:  # noqa: ANN401 - typer's
    """The program with all commands imported."""
    made = program()
    for name in COMMANDS:
        made.load(name)
    return made


def commands(command: Any, context: Any) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - typer's
    """What one types, and the context of the command, for `command` and all within it."""
    yield context.command_path, context
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        if not inner.hidden:
            yield from commands(inner, inner.context_class(inner, info_name=name, parent=context))


def heading(name: str, date: str) -> str:
    """The line at the top and the bottom of a page."""
    stem, _, number = name.rpartition(".")
    return f'.TH {escaped(stem.upper())} {number} {date} "backy {__version__}" "Manual of backy"'


# The page of a command


def command_page(context: Any, found: Mapping[str, Any]) -> Iterator[str]:  # noqa: ANN401 - typer's
    """The lines of it; `found` are all commands."""
    command, path = context.command, context.command_path
    within = [(name, short(each)) for name, each in found.items() if outer(name) == path]
    yield from beginning(page(path), short(context))
    yield ".SH SYNOPSIS"
    yield f".B {escaped(path)}"
    yield escaped(" ".join(command.collect_usage_pieces(context)))
    yield from section("DESCRIPTION", prose(command.help or ""))
    yield from section("ARGUMENTS", terms(records(command, context, "argument")))
    yield from section("OPTIONS", terms(records(command, context, "option")))
    yield from section("COMMANDS", terms(within))
    epilog = command.epilog or ""
    if epilog.startswith("Example: "):
        yield from section("EXAMPLE", [".EX", escaped(epilog.removeprefix("Example: ")), ".EE"])
    if path == PROGRAM:
        yield from surroundings(found)
    related = [name for name in (outer(path), *(name for name, _ in within)) if name]
    yield from see_also(*(f"{page(name)}(1)" for name in related), "backy.yaml(5)")


def outer(path: str) -> str:
    """What `path` is a command of: "backy reports" for "backy reports show"."""
    return path.rpartition(" ")[0]


def short(context: Any) -> str:  # noqa: ANN401 - typer's
    """The first sentence of the help of a command, without its full stop."""
    text: str = context.command.get_short_help_str(200)
    return text.removesuffix(".")


def surroundings(found: Mapping[str, Any]) -> Iterator[str]:
    """Exit codes, variables and files, which are those of all commands."""
    kinds = [kind for kind in subclasses(errors.BackyError) if "exit_code" in vars(kind)]
    codes = {0: "Done.", 1: "Another error.", 2: "Wrong usage."}
    codes[70] = "A bug; its traceback is on standard error."
    codes |= {kind.exit_code: first_paragraph(kind.__doc__ or "") for kind in kinds}
    yield from section("EXIT STATUS", terms((str(code), codes[code]) for code in sorted(codes)))
    variables = {
        variable: f"Stands for {'/'.join(parameter.opts)}."
        for context in found.values()
        for parameter in context.command.params
        for variable in [*filter(None, [parameter.envvar])]
    }
    yield from section("ENVIRONMENT", terms(sorted(variables.items())))
    yield from files()


def subclasses(kind: type[errors.BackyError]) -> Iterator[type[errors.BackyError]]:
    """All classes below `kind`."""
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def first_paragraph(text: str) -> str:
    """The text up to its first empty line."""
    return text.partition("\n\n")[0]


# The page of the configuration


def settings_page() -> Iterator[str]:
    """The lines of it: the keys of the file, then a section for each kind of mapping in it."""
    texts = tomllib.loads(TEXTS.read_text())
    yield from beginning("backy.yaml", "configuration of backy")
    yield from section("DESCRIPTION", prose(texts["Config"]["about"]))
    yield from section("SETTINGS", terms(settings(config.Config, texts["Config"])))
    for name, about in texts.items():
        if name != "Config":
            model = getattr(config, name)
            text = prose(about.get("about", ""))
            yield from section(name.upper(), [*text, *terms(settings(model, about))])
    yield from files()
    yield from see_also("backy(1)", "backy-config(1)", "backy-daemon(1)")


def settings(model: type[BaseModel], texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each key of a mapping: what may stand there, what holds without it, what it is for."""
    properties = model.model_json_schema(mode="serialization")["properties"]
    for field in model.model_fields.values():
        key = str(field.alias)
        unit = unit_of(field)
        facts = [unit or kind(properties[key])]
        if field.is_required():
            facts.append("required")
        elif isinstance(field.default, (bool, int, str, Path)):
            facts.append(f"default: {default_text(field.default, unit)}")
        yield key, f"{' '.join(texts[key].split())}\n({'; '.join(facts)})"


def unit_of(field: FieldInfo) -> str:
    """What a number stands for, found by what it may be written as."""
    annotation: Any = Annotated[field.annotation, None, *field.metadata]
    adapter = TypeAdapter(annotation)
    for unit, (example, value) in UNITS.items():
        with suppress(ValidationError):
            if adapter.validate_python(example) == value:
                return unit
    return ""


def default_text(value: object, unit: str) -> str:
    """A default as it is written in YAML."""
    if unit == "duration":
        number = int(str(value))
        size, letter = next(each for each in DURATIONS if number % each[0] == 0)
        return f"{number // size}{letter}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def kind(setting: Mapping[str, Any]) -> str:
    """What may stand at a key, in words."""
    if "$ref" in setting:
        name = setting["$ref"].rpartition("/")[2]
        return f"mapping as in {'JOB' if name == 'Defaults' else name.upper()}"
    if "enum" in setting:
        return "one of " + ", ".join(setting["enum"])
    if alternatives := setting.get("anyOf"):
        return " or ".join(kind(each) for each in alternatives if each.get("type") != "null")
    if setting["type"] == "array":
        return f"list; {kind(setting['items'])}"
    if setting["type"] == "object":
        values = setting["additionalProperties"]
        return f"mapping; {kind(values)}" if isinstance(values, dict) else "mapping"
    return KINDS[setting["type"]]


# What all pages have


def beginning(name: str, what: str) -> Iterator[str]:
    """Which page it is, in the form that `apropos` and `whatis` read."""
    yield f".SH NAME\n{escaped(name)} \\- {escaped(what[:1].lower() + what[1:])}"


def section(heading: str, lines: Iterable[str]) -> Iterator[str]:
    """`lines` below a heading; nothing where there are none."""
    if text := list(lines):
        yield f".SH {escaped(heading)}"
        yield from text


def prose(text: str) -> Iterator[str]:
    """Paragraphs, which an empty line parts."""
    for number, paragraph in enumerate(filter(None, map(str.strip, text.split("\n\n")))):
        if number:
            yield ".PP"
        yield escaped(" ".join(paragraph.split()))


def terms(entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A list of terms, each with its explanation; each line of it begins a line."""
    for term, text in entries:
        yield f".TP\n.B {escaped(term)}"
        yield "\n.br\n".join(escaped(" ".join(line.split())) for line in text.split("\n"))


def files() -> Iterator[str]:
    """Where the configuration is."""
    yield ".SH FILES"
    for path in CONFIG_PATHS:
        yield f".TP\n.I {escaped(str(path))}\nThe configuration; the first that exists is read."


def see_also(*pages_named: str) -> Iterator[str]:
    """References, in the order of the alphabet."""
    names = sorted(set(pages_named))
    yield ".SH SEE ALSO"
    for name in names:
        end = "" if name == names[-1] else ","
        yield f".BR {escaped(name).replace('(', ' (')}{end}"


def page(path: str) -> str:
    """The name of a command's page, as that of git's commands."""
    return path.replace(" ", "-")


def escaped(text: str) -> str:
    """`text` such that roff prints it as it is. A line that begins like a request is none."""
    safe = re.sub(r"[\\\-'`^~]", lambda found: ESCAPES[found[0]], text)
    return re.sub(r"(?m)^([.])", r"\&\1", safe)


if __name__ == "__main__":
    sys.exit(main())
