"""docs/schemas/ is made from the types of messages, and the types are complete."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypedDict,
    get_args,
    get_type_hints,
    is_typeddict,
)

import pytest
from jsonschema import Draft202012Validator

from backy.model import answers, messages
from tools import make_schemas


def test_the_schemas_in_docs_are_those_of_the_types() -> None:
    """If not, run `make schemas` and look at the difference: programs of users read these."""
    there = {path.name: path.read_text() for path in make_schemas.SCHEMAS.iterdir()}
    assert there == make_schemas.files()


def test_the_command_writes_them_into_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_schemas", str(tmp_path / "new")])
    make_schemas.main()
    made = {path.name: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert made == make_schemas.files()


class Sample(TypedDict):
    """A message.

    number: How many there are, in two lines
      of text.
    words: What it says.
    """

    kind: Annotated[Literal["a"], ("description", "Brought by the type.")]
    number: Annotated[int, ("minimum", 2)] | None
    words: NotRequired[Sequence[str]]


SAMPLE = make_schemas.schema_of(Sample)


def test_a_key_has_the_text_of_the_docstring_or_of_its_type() -> None:
    texts = {key: value["description"] for key, value in SAMPLE["properties"].items()}
    assert texts == {
        "kind": "Brought by the type.",
        "number": "How many there are, in two lines of text.",
        "words": "What it says.",
    }


@pytest.mark.parametrize(
    ("message", "is_valid"),
    [
        pytest.param({"kind": "a", "number": 2, "words": ["x"]}, True, id="all"),
        pytest.param({"kind": "a", "number": None}, True, id="null-and-left-out"),
        pytest.param({"kind": "b", "number": 2}, False, id="another-literal"),
        pytest.param({"kind": "a", "number": 1}, False, id="below-the-minimum"),
        pytest.param({"kind": "a"}, False, id="a-required-key-is-missing"),
        pytest.param({"kind": "a", "number": 2, "words": [1]}, False, id="wrong-item"),
        pytest.param({"kind": "a", "number": 2, "more": 1}, False, id="a-key-more"),
    ],
)
def test_a_schema_is_as_strict_as_its_type(message: dict[str, Any], is_valid: bool) -> None:
    assert Draft202012Validator(SAMPLE).is_valid(message) is is_valid


def test_a_text_for_a_key_that_is_gone_is_an_error() -> None:
    class Stale(TypedDict):
        """A message.

        old: A key that it had.
        """

    with pytest.raises(ValueError, match="Stale has no old"):
        make_schemas.schema_of(Stale)


# Of other messages.
BASES = {answers.JobAnswer, messages.Finished, messages.Checked, messages.Message}
SOCKET = {answers.DaemonRequest, answers.PromisesReply, answers.ReloadReply, answers.JobReply}


def messages_in(kind: Any) -> Iterator[Any]:  # noqa: ANN401 - any form of a type
    """The types of messages within a type, and itself if it is one."""
    if is_typeddict(kind):
        yield kind
        for hint in get_type_hints(kind, include_extras=True).values():
            yield from messages_in(hint)
    for part in get_args(kind):
        yield from messages_in(part)


def test_every_message_that_a_command_can_print_is_in_a_schema() -> None:
    kinds = {
        kind
        for module in (answers, messages)
        for kind in vars(module).values()
        if is_typeddict(kind) and kind.__module__ == module.__name__
    }
    printed = [*make_schemas.SHARED]
    for output in make_schemas.COMMANDS.values():
        printed += output.messages
    assert {each for kind in printed for each in messages_in(kind)} == kinds - SOCKET - BASES
