"""Revision words mean what the grammar says, and nothing that is typed can do harm."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backy.errors import BackyError, NotFoundError, UsageError
from backy.model.names import check_tag
from backy.model.revision import Consistency, Disk, Revision, Trust, id_for
from backy.model.selector import select, select_one

DISKS = {"vda": Disk(size=1, block_size=1, index_hash="0" * 64, read=1, changed=1, stored=1)}
NOON = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


def revision(
    time: datetime, *tags: str, trust: Trust = Trust.TRUSTED, suffix: str = "aaaa"
) -> Revision:
    return Revision(
        id=id_for(time, suffix),
        time=time,
        parent=None,
        seconds=1,
        consistency=Consistency.NONE,
        disks=DISKS,
        tags=tags,
        trust=trust,
    )


# Eight revisions, two a day from the 20th at 12:00 to the 24th at 00:00, named a to h.
HISTORY = [
    revision(NOON, "daily", "weekly"),
    revision(NOON + timedelta(hours=12), "daily", trust=Trust.VERIFIED),
    revision(NOON + timedelta(hours=24), "manual:before-upgrade"),
    revision(NOON + timedelta(hours=36), "daily", trust=Trust.DISTRUSTED),
    revision(NOON + timedelta(hours=48)),
    revision(NOON + timedelta(hours=60), "daily", "weekly", trust=Trust.VERIFIED),
    revision(NOON + timedelta(hours=72)),
    revision(NOON + timedelta(hours=84), "daily", "größte.tag@2"),
]


def names(spec: str) -> str:
    """The revisions that `spec` names, as letters."""
    return "".join("abcdefgh"[HISTORY.index(each)] for each in select(spec, HISTORY))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", "abcdefgh"),
        ("local", "abcdefgh"),
        ("clean", "abcefgh"),
        ("latest", "h"),
        ("last", "h"),
        ("first", "a"),
        ("0", "h"),
        ("1", "g"),
        ("007", "a"),
        ("tag:daily", "abdfh"),
        ("tag:manual:before-upgrade", "c"),
        ("tag:größte.tag@2", "h"),
        ("tag:none", ""),
        ("trust:verified", "bf"),
        ("trust:trusted", "acegh"),
        ("trust:distrusted", "d"),
        ("2026-11-21", "bc"),
        ("2026-11-21T00:00", "b"),
        ("2026-11-21T00:00:00Z", "b"),
        ("2026-11-21T00:01", ""),
        ("2026-11-21T01:00+01:00", "b"),
        ("2026-11-20T19:00:00-05:00", "b"),
        ("1999-12-31", ""),
        ("20261121T000000Z-aaaa", "b"),
        ("20261121T12", "c"),
        ("20261124", "h"),
        ("1,2", "gf"),
        ("2,1,2,1", "fg"),
        ("all,first", "abcdefgh"),
        ("first,all", "abcdefgh"),
        ("latest,all", "habcdefg"),
        ("tag:daily&clean", "abfh"),
        ("reverse(all)&tag:weekly", "fa"),
        ("tag:weekly&reverse(all)", "af"),
        ("first & last", ""),
        ("6..4", "bcd"),
        ("4..6", "bcd"),
        ("..5", "abc"),
        ("5..", "cdefgh"),
        ("..", "abcdefgh"),
        ("2026-11-21..2026-11-22", "bcde"),
        ("2026-11-22..", "defgh"),
        ("..2026-11-22", "abcde"),
        ("2026-11-21T12:00..2026-11-22", "cde"),
        ("tag:none..", ""),
        ("..tag:none", ""),
        ("2026-11-01..2026-11-19", ""),
        ("first..last", "abcdefgh"),
        ("first(tag:weekly)..last(tag:weekly)", "abcdef"),
        ("2026-11-21.. & tag:daily, first", "bdfha"),
        ("not(tag:daily)", "ceg"),
        ("not(all)", ""),
        ("not(tag:none)", "abcdefgh"),
        ("not(not(2,1))", "fg"),
        ("first(all)", "a"),
        ("last(tag:weekly)", "f"),
        ("last(tag:none)", ""),
        ("reverse(1,2)", "fg"),
        ("reverse(tag:weekly)", "fa"),
        ("(1,2)", "gf"),
        ("((0))", "h"),
        ("(first,latest)&tag:daily", "ah"),
        ("  last  (  tag:daily  &  clean  )  ", "h"),
        ("\tall\n&\ttag:weekly\n", "af"),
    ],
)
def test_a_spec_names(spec: str, expected: str) -> None:
    assert names(spec) == expected


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        pytest.param("2026-11-21T06:00..2026-11-21", "bc", id="a-minute-to-its-day"),
        pytest.param("2026-11-21..2026-11-21T06:00", "bc", id="a-day-to-a-minute-of-it"),
        pytest.param("all..first", "abcdefgh", id="everything-to-the-first"),
        pytest.param("latest..all", "abcdefgh", id="the-last-to-everything"),
        pytest.param("tag:weekly..3", "abcdef", id="a-tag-and-a-number-in-its-midst"),
        pytest.param("tag:weekly..tag:daily", "abcdefgh", id="two-tags"),
        pytest.param("tag:daily..tag:weekly", "abcdefgh", id="two-tags-the-other-way"),
    ],
)
def test_a_range_includes_both_of_its_ends_where_one_lies_in_the_other(
    spec: str, expected: str
) -> None:
    assert names(spec) == expected


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "  ",
        ",",
        "all,",
        ",all",
        "all &",
        "& all",
        "all all",
        "first first",
        "(all",
        "all)",
        "()",
        "not()",
        "not(",
        "a..b..c",
        "0....1",
        "first(all))",
        "reverse(all",
        "& , ..",
        "nosuch,,latest",
        "20261121,",  # the beginning of several ids
        "tag:",
        "latest,tag:",
        "trust:",
        "trust:maybe",
    ],
)
@pytest.mark.parametrize("history", [HISTORY, []], ids=["history", "none"])
def test_what_is_malformed_is_wrong_usage_in_any_history_and_quoted_with_examples(
    spec: str, history: list[Revision]
) -> None:
    with pytest.raises(UsageError) as caught:
        select(spec, history)
    assert repr(spec) in caught.value.message
    assert caught.value.hint.startswith("Examples: ")


@pytest.mark.parametrize(
    "word",
    [
        "8",
        "99999999999999999999",
        "-1",
        "1.5",
        "not",
        "reverse",
        "Latest",
        "yesterday",
        "2026-13-01",
        "2026-11-31",
        "2026-11-21T24:61",
        "2026-11-21T00",
        "2026-11-21 ",
        "x7k2",
        "20261121T000000Z-aaab",
        "\N{ARABIC-INDIC DIGIT ONE}",
        "\N{SUPERSCRIPT TWO}",
        "2026-11-2\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_a_word_that_names_nothing_is_quoted_and_what_is_there_is_listed(word: str) -> None:
    if word == "2026-11-21 ":
        assert names(word) == "bc"
        return
    with pytest.raises(NotFoundError) as caught:
        select(f"all,{word}", HISTORY)
    assert repr(word) in caught.value.message
    shown = caught.value.hint
    assert "20261120T120000Z-aaaa tag:daily tag:weekly" in shown
    assert "20261124T000000Z-aaaa" in shown


def test_the_beginning_of_several_ids_is_refused_and_says_of_how_many() -> None:
    with pytest.raises(NotFoundError, match="'20261121' is the beginning of 2 ids"):
        select("20261121", HISTORY)


def test_an_id_is_itself_even_where_it_begins_others() -> None:
    # Cannot happen with ids of one length; a plug-in's history may have others.
    short, long = HISTORY[0], revision(NOON + timedelta(days=9))
    object.__setattr__(long, "id", short.id + "zz")
    assert select(short.id, [short, long]) == [short]


def test_an_error_lists_no_more_than_twenty_revisions() -> None:
    many = [revision(NOON + timedelta(hours=hour)) for hour in range(50)]
    with pytest.raises(NotFoundError) as caught:
        select("none", many)
    assert caught.value.hint.count("Z-aaaa") == 20
    assert "and 30 older" in caught.value.hint
    assert many[-1].id in caught.value.hint


@pytest.mark.parametrize("word", ["latest", "last", "first", "0", "20261121", "none"])
def test_where_there_are_no_revisions_no_word_names_one(word: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        select(word, [])
    assert caught.value.hint == "There are no revisions yet."


@pytest.mark.parametrize("spec", ["all", "clean", "tag:x", "2026-11-20", "..", "first(all)"])
def test_where_there_are_no_revisions_a_set_is_empty(spec: str) -> None:
    assert select(spec, []) == []


def test_one_revision_is_given_where_one_is_named() -> None:
    assert select_one("last(tag:weekly)", HISTORY) == HISTORY[5]


@pytest.mark.parametrize(
    ("spec", "message", "hint"),
    [
        pytest.param("tag:none", "'tag:none' names no revision", "20261124T0000", id="none"),
        pytest.param("0,1", "'0,1' names 2 revisions: 20261124T", "last(0,1)", id="several"),
    ],
)
def test_where_one_is_needed_none_and_several_are_errors(
    spec: str, message: str, hint: str
) -> None:
    with pytest.raises(NotFoundError) as caught:
        select_one(spec, HISTORY)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_the_history_is_not_changed_by_what_is_made_of_it() -> None:
    history = list(HISTORY)
    for spec in ("all", "reverse(all)", "all,first", "local & all"):
        select(spec, history).clear()
    assert history == HISTORY


# Anything may be typed, or come from a customer's web form.

BOUNDARIES = [
    "0001-01-01",
    "9999-12-31",
    "9999-12-31T23:59:59Z",
    "0001-01-01T00:00+14:00",
    "9999-12-31T23:59-14:00",
    "0001-01-01T00:00:00.000001+23:59",
    "0000-01-01",
    "2026-11-21T00:00+24:00",
    "2026-11-21T00:00-99:99",
]


@pytest.mark.parametrize("word", BOUNDARIES)
def test_dates_at_the_ends_of_time_are_dates_or_named_as_none(word: str) -> None:
    for spec in (word, f"{word}..", f"..{word}", f"not({word})"):
        try:
            assert len(select(spec, HISTORY)) in {0, len(HISTORY)}
        except NotFoundError as error:
            assert word in error.message  # noqa: PT017 - either is fine


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param("(" * 5000 + "all" + ")" * 5000, id="deep"),
        pytest.param("(" * 2000 + "all" + ")" * 2000, id="deep-and-not-long"),
        pytest.param("not(" * 65 + "all" + ")" * 65, id="a-little-too-deep"),
        pytest.param("all," * 5000, id="long"),
        pytest.param("9" * 5000, id="a-long-number"),
        pytest.param("9" * 4096, id="the-longest-number"),
    ],
)
def test_what_would_cost_too_much_is_refused(spec: str) -> None:
    with pytest.raises((UsageError, NotFoundError)):
        select(spec, HISTORY)


def test_sixty_four_parentheses_are_fine_and_so_is_any_number_one_after_the_other() -> None:
    assert names("(" * 64 + "0" + ")" * 64) == "h"
    assert names(",".join(["(0)"] * 200)) == "h"


WORDS = "all first not last( ( ) , & .. . 0 7 99 tag: daily trust: verified 2026-11-21 T00:00"
pieces = st.sampled_from([*WORDS.split(), " ", "+01:00", "Z", "2026", "-", ":", *BOUNDARIES])


@given(st.one_of(st.text(max_size=60), st.lists(pieces, max_size=12).map("".join)))
def test_whatever_is_typed_names_revisions_or_is_an_error_for_people(spec: str) -> None:
    try:
        found = select(spec, HISTORY)
    except (NotFoundError, UsageError) as error:
        assert error.hint  # noqa: PT017 - either is fine
    else:
        assert len({each.id for each in found}) == len(found)
        assert {each.id for each in found} <= {each.id for each in HISTORY}


@given(
    st.text(st.one_of(st.characters(categories=["L", "N"]), st.sampled_from(".:@-_, (&")))
    | st.text(st.sampled_from("ab.:@-_"), min_size=1)
)
def test_a_tag_that_may_be_given_can_be_asked_for(tag: str) -> None:
    try:
        check_tag(tag)
    except BackyError:
        assume(False)
    history = [revision(NOON), revision(NOON + timedelta(hours=1), tag)]
    for spec in (f"tag:{tag}", f"(tag:{tag})&all", f"last(tag:{tag},tag:{tag})"):
        assert select(spec, history) == history[1:]


# The same grammar once more, as sets of positions, and never parsed: trees are made, evaluated
# naively and printed with random white space.


@dataclass(frozen=True)
class Tree:
    """A spec: its text in tokens, how tightly its outermost operator binds, and what it names.

    `value` gives positions in a history. `span` is what a word that is a date says itself.
    """

    tokens: tuple[str, ...]
    binding: int  # 0 list, 1 "&", 2 range, 3 word
    value: Callable[[list[Revision]], list[int]]
    span: tuple[datetime, datetime] | None = None

    def inside(self, binding: int) -> tuple[str, ...]:
        """The tokens where only what binds at least so tightly may stand."""
        return self.tokens if self.binding >= binding else ("(", *self.tokens, ")")


def having(
    text: str, holds: Callable[[Revision], bool], span: tuple[datetime, datetime] | None = None
) -> Tree:
    return Tree(
        (text,), 3, lambda history: [i for i, each in enumerate(history) if holds(each)], span
    )


def dated(time: datetime, form: str, length: timedelta) -> Tree:
    """The word for the day, minute or second that `time` lies in, written by `form`."""
    seconds = int(length.total_seconds())
    start = datetime.fromtimestamp(int(time.timestamp()) // seconds * seconds, UTC)
    end = start + length - timedelta(microseconds=1)
    return having(f"{start:{form}}", lambda each: start <= each.time <= end, (start, end))


def range_of(left: Tree | None, right: Tree | None) -> Tree:
    """From the oldest to the newest moment of what both ends name; nothing if one names nothing."""

    def value(history: list[Revision]) -> list[int]:
        moments = []
        for end in (left, right):
            if end is not None:
                found = [history[i].time for i in end.value(history)]
                moments.append(list(end.span or ()) or found)
        if not all(moments):
            return []
        flat = [moment for each in moments for moment in each]
        low = min(flat) if left else datetime.min.replace(tzinfo=UTC)
        high = max(flat) if right else datetime.max.replace(tzinfo=UTC)
        return [i for i, each in enumerate(history) if low <= each.time <= high]

    tokens = (*(left.inside(3) if left else ()), "..", *(right.inside(3) if right else ()))
    return Tree(tokens, 2, value)


def call(name: str, inner: Tree) -> Tree:
    def value(history: list[Revision]) -> list[int]:
        found = inner.value(history)
        everything = range(len(history))
        return {
            "not": [i for i in everything if i not in found],
            "first": found[:1],
            "last": found[len(found) - 1 :] if found else [],
            "reverse": [found[-1 - i] for i in range(len(found))],
            "": found,
        }[name]

    return Tree((*((name,) if name else ()), "(", *inner.tokens, ")"), 3, value)


def both(left: Tree, right: Tree) -> Tree:
    def value(history: list[Revision]) -> list[int]:
        others = right.value(history)
        return [i for i in left.value(history) if i in others]

    return Tree((*left.inside(1), "&", *right.inside(2)), 1, value)


def either(left: Tree, right: Tree) -> Tree:
    def value(history: list[Revision]) -> list[int]:
        return list(dict.fromkeys(left.value(history) + right.value(history)))

    return Tree((*left.inside(0), ",", *right.inside(1)), 0, value)


leaves = st.one_of(
    st.sampled_from(
        [
            having("all", lambda _: True),
            having("local", lambda _: True),
            having("clean", lambda each: each.trust.value != "distrusted"),
            Tree(("latest",), 3, lambda history: [len(history) - 1]),
            Tree(("last",), 3, lambda history: [len(history) - 1]),
            Tree(("first",), 3, lambda _: [0]),
        ]
    ),
    st.sampled_from(["x", "y", "z"]).map(lambda t: having(f"tag:{t}", lambda each: t in each.tags)),
    st.sampled_from(list(Trust)).map(
        lambda trust: having(f"trust:{trust.value}", lambda each: each.trust is trust)
    ),
    st.integers(0, 3).map(lambda n: Tree((str(n),), 3, lambda history: [len(history) - 1 - n])),
    st.integers(0, 100).map(lambda h: dated(NOON + timedelta(hours=h), "%Y-%m-%d", timedelta(1))),
    st.integers(0, 6000).map(
        lambda m: dated(NOON + timedelta(minutes=m), "%Y-%m-%dT%H:%M+00:00", timedelta(minutes=1))
    ),
)
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(call, st.sampled_from(["not", "first", "last", "reverse", ""]), inner),
        st.builds(both, inner, inner),
        st.builds(either, inner, inner),
        st.builds(range_of, st.none() | inner, st.none() | inner),
    ),
    max_leaves=8,
)
histories = st.lists(
    st.tuples(
        st.integers(0, 100),
        st.sets(st.sampled_from(["x", "y", "z"])).map(sorted),
        st.sampled_from(list(Trust)),
    ),
    min_size=4,
    max_size=9,
    unique_by=lambda each: each[0],
).map(
    lambda rows: [
        revision(NOON + timedelta(hours=hour), *tags, trust=trust)
        for hour, tags, trust in sorted(rows, key=lambda row: row[0])
    ]
)


@given(tree=trees, history=histories, data=st.data())
def test_a_spec_means_what_an_independent_reading_of_the_grammar_says(
    tree: Tree, history: list[Revision], data: st.DataObject
) -> None:
    spaces = data.draw(
        st.lists(
            st.sampled_from(["", "", " ", "\t", "  \n"]),
            min_size=len(tree.tokens) + 1,
            max_size=len(tree.tokens) + 1,
        )
    )
    spec = spaces[0] + "".join(
        token + space for token, space in zip(tree.tokens, spaces[1:], strict=True)
    )
    expected = [history[i].id for i in tree.value(history)]
    assert [each.id for each in select(spec, history)] == expected
