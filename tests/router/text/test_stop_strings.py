"""Stop strings are found wherever the text is cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.text.stop_strings import StopMatch, StopStrings

few_letters = st.text("ab\n", max_size=40)
any_stops = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def searched(text: str, stops: list[str]) -> StopMatch:
    """The definition: the first end of a stop string, and there the longest."""
    for end in range(len(text) + 1):
        here = [stop for stop in stops if text[:end].endswith(stop)]
        if here:
            stop = max(here, key=len)
            return StopMatch(text[: end - len(stop)], stop)
    return StopMatch(text, None)


@given(few_letters, any_stops, st.lists(st.integers(0, 40), max_size=10))
def test_any_split_gives_what_a_search_of_the_whole_text_gives(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(cuts), len(text)]
    looking = StopStrings(stops)
    emitted = ""
    for start, end in pairwise(edges):
        match = looking.push(text[start:end])
        emitted += match.text
        if match.stop_string is not None:
            assert (emitted, match.stop_string) == searched(text, stops)
            assert looking.flush() == ""
            return
    assert (emitted + looking.flush(), None) == searched(text, stops)


@given(few_letters, any_stops)
def test_no_more_is_held_back_than_may_begin_a_stop_string(text: str, stops: list[str]) -> None:
    looking = StopStrings(stops)
    match = looking.push(text)
    held = looking.flush()
    if match.stop_string is None:
        assert match.text + held == text
        assert held == "" or any(stop.startswith(held) for stop in stops)


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        ([], "text", StopMatch("text", None)),
        (["\n\n"], "one\n\ntwo", StopMatch("one", "\n\n")),
        (["long stop", "stop"], "a long stop", StopMatch("a ", "long stop")),
        (["abcd", "b"], "abcd", StopMatch("a", "b")),
        (["b", "abc"], "abc", StopMatch("a", "b")),
    ],
)
def test_the_stop_string_complete_first_wins(
    stops: list[str], text: str, expected: StopMatch
) -> None:
    assert StopStrings(stops).push(text) == expected
