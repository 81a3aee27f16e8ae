"""Structure-aware damage: valid files of the corpus, changed as trees, as text and as bytes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

Json = Any
Place = tuple[str | int, ...]

# What json.dumps does not write, by the word that stands for it in a tree.
RAW = {
    "@deep": b"[" * 300 + b"]" * 300,
    "@deep-object": b'{"a":' * 300 + b"1" + b"}" * 300,
    "@too-deep": b"[" * 100_000,
    "@huge": b"9" * 4300,  # as long as Python converts
    "@too-huge": b"9" * 5000,
    "@negative-huge": b"-" + b"9" * 4299,
    "@nan": b"NaN",
    "@infinity": b"-Infinity",
    "@exponent": b"1e999",
    "@minus-zero": b"-0.0",
    "@not-utf-8": b'"\xff\xfe"',
    "@surrogate-in-utf-8": b'"\xed\xa0\x80"',
    "@twice": b'{"format": 1, "format": 2, "vda": 1, "vda": []}',
}
STRINGS = [
    "", ".", "..", "../../neighbour", "../../../etc", "/", "a/b", "a\0b", "a\nb", "\x1b[2J",
    "\x9b2J", "\ud800", "\ufeff", "\u202e", "-rf", "x" * 300, "vda", "vdb", "self", "type",
    "disks", "file",
    "0" * 64, "F" * 64, "g" * 64, "20261123T004938Z-x7k2", "99991231T235959Z-zzzz",
    "00010101T000000Z-aaaa", "20261399T000000Z-aaaa", "0001-01-01T00:00:00+23:59", "NaN", "1e400",
    "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-23:59", "2026-11-23T00:49:38", "9" * 5000,
    "distrusted",
]  # fmt: skip
NUMBERS = [
    0,
    -1,
    1,
    65535,
    65536,
    2**31,
    2**53 + 1,
    2**60,
    2**60 + 1,
    2**63,
    2**64,
    10**30,
    10**400,
]
values: st.SearchStrategy[Json] = st.one_of(
    st.sampled_from([*STRINGS, *RAW]),
    st.sampled_from(NUMBERS),
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([[], {}, [[]], [{}], {"": {}}, [1, 2], [[0, 1]] * 3, {"vda": [[0, 65536]]}]),
    st.text(max_size=10),
)


def places(tree: Json, place: Place = ()) -> Iterator[Place]:
    """The way to everything in a tree, and to the tree itself."""
    yield place
    if isinstance(tree, dict):
        for key, inner in tree.items():
            yield from places(inner, (*place, key))
    elif isinstance(tree, list):
        for number, inner in enumerate(tree):
            yield from places(inner, (*place, number))


def at(tree: Json, place: Place) -> Json:
    """What is in a place."""
    for key in place:
        tree = tree[key]
    return tree


def with_change(tree: Json, place: Place, change: Callable[[Json, str | int], None]) -> Json:
    """A tree in which `change` was made to what contains the place."""
    tree = json.loads(json.dumps(tree))
    if place:
        change(at(tree, place[:-1]), place[-1])
    return tree


@st.composite
def changed_tree(draw: st.DrawFn, tree: Json, others: Sequence[Json]) -> Json:
    """A tree with one thing deleted, replaced, inserted, repeated or taken from another tree."""
    place = draw(st.sampled_from(list(places(tree))))
    other = draw(st.sampled_from(others))
    value = draw(values | st.sampled_from(list(places(other))).map(lambda there: at(other, there)))
    name = draw(st.sampled_from(STRINGS))

    def delete(inside: Json, key: str | int) -> None:
        del inside[key]

    def replace(inside: Json, key: str | int) -> None:
        inside[key] = value

    def insert(inside: Json, key: str | int) -> None:
        if isinstance(inside, list):
            inside.insert(int(key), value)
        else:
            inside[name] = value

    def rename(inside: Json, key: str | int) -> None:
        if isinstance(inside, dict):
            inside[name] = inside.pop(key)
        else:
            inside.extend(inside * 2)

    return with_change(tree, place, draw(st.sampled_from([delete, replace, insert, rename])))


def encoded(tree: Json, encoding: str = "utf-8") -> bytes:
    """The text of a tree, with what RAW has in it."""
    content = json.dumps(tree).encode()
    for word, raw in RAW.items():
        content = content.replace(f'"{word}"'.encode(), raw)
    return content if encoding == "utf-8" else content.decode(errors="replace").encode(encoding)


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes, others: Sequence[bytes]) -> bytes:
    """Bytes with some flipped, lost, doubled, or taken from other bytes."""
    data = bytearray(content or b"\0")
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 64)))
        other = draw(st.sampled_from(others))
        begin = draw(st.integers(0, len(other)))
        match draw(st.sampled_from(["flip", "lose", "cut", "splice", "double", "overwrite"])):
            case "flip" if start < len(data):
                data[start] ^= 1 << draw(st.integers(0, 7))
            case "lose":
                del data[start:end]
            case "cut":
                del data[start:]
            case "splice":
                data[start:] = other[begin:]
            case "double":
                data[start:start] = data[start:end]
            case _:
                data[start:end] = draw(st.binary(max_size=16))
    return bytes(data)


@st.composite
def damaged_json(draw: st.DrawFn, corpus: Sequence[bytes]) -> bytes:
    """A valid record, changed in a few places; then, now and then, as text and as bytes."""
    trees = [json.loads(content) for content in corpus]
    tree = draw(st.sampled_from(trees))
    for _ in range(draw(st.integers(0, 3))):
        tree = draw(changed_tree(tree, trees))
    encodings = ["utf-8"] * 9 + ["utf-8-sig", "utf-16", "utf-32-be", "utf-7"]
    content = encoded(tree, draw(st.sampled_from(encodings)))
    return draw(damaged_bytes(content, corpus)) if draw(st.integers(0, 3)) == 3 else content
