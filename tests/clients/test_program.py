"""Programs of a storage are called at once, so that a frozen guest waits for the slowest only."""

from threading import Barrier

import pytest

from backy.clients.program import call_at_once
from backy.errors import SourceError


def test_eight_calls_are_made_at_once_and_their_results_are_in_order() -> None:
    barrier = Barrier(8)  # lets nobody through until all eight have come

    def call(name: str) -> str:
        barrier.wait(60)
        return name.upper()

    assert call_at_once(call, "abcdefgh") == list("ABCDEFGH")


def test_more_calls_than_that_are_made_one_after_the_other() -> None:
    names = [str(number) for number in range(100)]
    assert call_at_once(lambda name: name, names) == names


def test_the_first_error_is_raised_when_all_calls_have_ended() -> None:
    begun, ended, barrier = list[str](), list[str](), Barrier(3)

    def call(name: str) -> None:
        begun.append(name)
        barrier.wait(60)
        if name == "b":
            raise SourceError("the second one fails")
        ended.append(name)

    with pytest.raises(SourceError, match="the second one fails"):
        call_at_once(call, "abc")
    assert sorted(begun) == ["a", "b", "c"]
    assert sorted(ended) == ["a", "c"]


def test_no_call_gives_no_result() -> None:
    assert call_at_once(str.upper, []) == []
