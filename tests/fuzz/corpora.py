"""The corpus: small files that once were, or could be, what a hostile repository holds."""

from __future__ import annotations

from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def names(kind: str) -> list[str]:
    """What there is of a kind, with "good-" before what must be accepted."""
    return sorted(path.stem for path in (CORPUS / kind).glob("*.json"))


def content(kind: str, name: str) -> bytes:
    """One file."""
    return (CORPUS / kind / f"{name}.json").read_bytes()


def good(kind: str) -> list[bytes]:
    """All that must be accepted: what mutations begin with."""
    return [content(kind, name) for name in names(kind) if is_good(name)]


def is_good(name: str) -> bool:
    """Whether a file must be accepted."""
    return name == "good" or name.startswith("good-")


def lines(name: str) -> list[str]:
    """The lines of a text file."""
    return (CORPUS / name).read_text().splitlines()
