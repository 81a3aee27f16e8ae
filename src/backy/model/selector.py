"""Revision words, which select revisions on a command line. Pure functions.

    words      = list of sets, joined by ","     a list keeps its order and drops duplicates
    set        = ranges joined by "&"            revisions in all of them, in the order of the first
    range      = word | [word] ".." [word]       from the older to the newer, both included; by
                                                 time if one is a date, else in the history's order
    word       = "all" | "clean" | "local" | "latest" | "last" | "first"
               | number                          0 is the newest, 1 the one before
               | "tag:" name | "trust:" state
               | date | time                     2026-11-23, 2026-11-23T02:14, with +01:00 or UTC
               | id | unique prefix of an id
               | ("not" | "first" | "last" | "reverse")? "(" words ")"

This is backy 2's grammar with two additions: a date alone names all revisions of that day
(minute, second), and an id may be shortened.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

from backy.errors import NotFoundError, UsageError
from backy.model.revision import Revision, Trust

_TOKEN = re.compile(r"\s*(\.\.|[(),&]|(?:(?!\.\.)[^\s(),&])+)")
_DATE = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:T(\d{2}:\d{2})(:\d{2}(?:\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2})?)?", re.ASCII
)
_LONGEST = 4096  # characters; with _DEEPEST this limits the cost of a hostile word
_DEEPEST = 64  # nested parentheses
_LISTED = 20  # revisions in an error message

_Revisions = list[Revision]


def _without(revisions: _Revisions, others: _Revisions) -> _Revisions:
    ids = {revision.id for revision in others}
    return [revision for revision in revisions if revision.id not in ids]


_FUNCTIONS: dict[str, Callable[[_Revisions, _Revisions], _Revisions]] = {
    "not": _without,
    "first": lambda _, revisions: revisions[:1],
    "last": lambda _, revisions: revisions[-1:],
    "reverse": lambda _, revisions: revisions[::-1],
    "(": lambda _, revisions: revisions,
}
_ENDS = {"", ")", ",", "&"}  # no word begins with these; a range may end before them
_FIRST, _LAST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
# The first and last moment of a date, one of the above for an open end, nothing for other words;
# and the revisions.
_Word = tuple[Sequence[datetime], _Revisions]


def select(spec: str, history: Sequence[Revision]) -> list[Revision]:
    """The revisions that `spec` names. `history` must be sorted by id, oldest first.

    Raises UsageError if `spec` is malformed, whatever the history has; else NotFoundError if a word
    names no revision: it quotes the word and lists the revisions. Sets ("all", "tag:x", a date, a
    range) may be empty.
    """
    return _Parser(spec, list(history)).parse()


def select_one(spec: str, history: Sequence[Revision]) -> Revision:
    """The one revision that `spec` names.

    Raises NotFoundError if it names none or several, and UsageError if it is malformed.
    """
    selected = select(spec, history)
    if not selected:
        raise NotFoundError(f"{spec!r} names no revision", _choices(history))
    if len(selected) > 1:
        ids = ", ".join(revision.id for revision in selected[-_LISTED:])
        why = f"{spec!r} names {len(selected)} revisions: {ids}"
        raise NotFoundError(why, f'Write "last({spec})".')
    return selected[0]


def _choices(history: Sequence[Revision]) -> str:
    if not history:
        return "There are no revisions yet."
    shown = [
        " ".join((revision.id, *(f"tag:{tag}" for tag in revision.tags)))
        for revision in history[-_LISTED:]
    ]
    older = f" and {len(history) - _LISTED} older" if len(history) > _LISTED else ""
    return f"There are: {', '.join(shown)}{older}."


class _Parser:
    """Recursive descent over the tokens of one spec."""

    def __init__(self, spec: str, history: _Revisions) -> None:
        self._spec = spec
        self._history = history
        self._depth = 0
        self._missing: NotFoundError | None = None
        if len(spec) > _LONGEST:
            why = f"a revision word of {len(spec)} characters"
            raise UsageError(why, f"{_LONGEST} is the limit.")
        self._tokens = [*_TOKEN.findall(spec.rstrip()), ""]  # which ends it

    def parse(self) -> _Revisions:
        selected = self._list()
        if self._tokens[0]:
            raise self._malformed(f"{self._tokens[0]!r} was not expected")
        if self._missing:
            raise self._missing
        return selected

    def _malformed(self, why: str) -> UsageError:
        hint = "Examples: latest, 1, 2026-11-23, tag:daily, last(tag:daily & 2026-11-01..)."
        return UsageError(f"{self._spec!r} is not a revision word: {why}", hint)

    def _take(self, token: str) -> bool:
        if self._tokens[0] != token:
            return False
        self._tokens.pop(0)
        return True

    def _list(self) -> _Revisions:
        selected = self._set()
        while self._take(","):
            selected += _without(self._set(), selected)
        return selected

    def _set(self) -> _Revisions:
        selected = self._range()
        while self._take("&"):
            selected = _without(selected, _without(selected, self._range()))
        return selected

    def _range(self) -> _Revisions:
        left = ((_FIRST,), []) if self._tokens[0] == ".." else self._word()
        if not self._take(".."):
            return left[1]
        right = ((_LAST,), []) if self._tokens[0] in _ENDS else self._word()
        if not any(left) or not any(right):
            return []
        revisions = left[1] + right[1]
        if len(left[0]) == 2 or len(right[0]) == 2:  # noqa: PLR2004 - the moments of a date
            times = (revision.time for revision in revisions)
            return self._between([*left[0], *right[0], *times])
        ids = ["" for _ in left[0]] + [revision.id for revision in revisions]
        low, high = min(ids, default=""), "~" if right[0] else max(ids)
        return [revision for revision in self._history if low <= revision.id <= high]

    def _between(self, moments: Sequence[datetime]) -> _Revisions:
        low, high = min(moments), max(moments)
        return [revision for revision in self._history if low <= revision.time <= high]

    def _word(self) -> _Word:
        word = self._tokens.pop(0)
        if word in {*_ENDS, ".."}:
            raise self._malformed(f"{word!r} is not a word" if word else "it ends too early")
        if word == "(" or (word in _FUNCTIONS and self._take("(")):
            return (), self._call(word)
        span = _span(word)
        return span, self._between(span) if span else self._named(word)

    def _call(self, name: str) -> _Revisions:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._malformed("its parentheses are nested too deeply")
        selected = self._list()
        if not self._take(")"):
            raise self._malformed('a ")" is missing')
        self._depth -= 1
        return _FUNCTIONS[name](self._history, selected)

    def _named(self, word: str) -> _Revisions:
        history = self._history
        kind, _, value = word.partition(":")
        if word in {"all", "local"}:
            return list(history)
        if word == "clean":
            return [revision for revision in history if revision.trust is not Trust.DISTRUSTED]
        if kind == "tag":
            if not value:
                raise self._malformed("tag: needs a tag")
            return [revision for revision in history if value in revision.tags]
        if kind == "trust":
            if value not in {trust.value for trust in Trust}:
                why = "is none of trust:trusted, trust:verified, trust:distrusted"
                raise self._malformed(f"{word!r} {why}")
            return [revision for revision in history if revision.trust.value == value]
        return self._single(word)

    def _single(self, word: str) -> _Revisions:
        history = self._history
        if word in {"latest", "last", "first"} and history:
            return [history[0 if word == "first" else -1]]
        if word.isascii() and word.isdigit() and int(word) < len(history):
            return [history[-1 - int(word)]]
        selected = [revision for revision in history if revision.id.startswith(word)]
        if not selected or (len(selected) > 1 and word not in {each.id for each in selected}):
            why = f"is the beginning of {len(selected)} ids" if selected else "names no revision"
            # All else is parsed before this is raised: a malformed word is wrong in any history.
            self._missing = self._missing or NotFoundError(f"{word!r} {why}", _choices(history))
        return selected[:1]


def _span(word: str) -> Sequence[datetime]:
    """The first and last moment of a day, minute or second; empty if `word` is not a date."""
    match = _DATE.fullmatch(word)
    if not match:
        return ()
    unit = "seconds" if match[3] else "minutes" if match[2] else "days"
    try:
        start = datetime.fromisoformat(word)
        start = start.astimezone(UTC) if start.tzinfo else start.replace(tzinfo=UTC)
        return start, start + (timedelta(**{unit: 1}) - timedelta(microseconds=1))
    except (ValueError, OverflowError):
        return ()
