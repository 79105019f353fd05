"""Names come to models: all of them, in order, in their shares, and the same for the same one."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.catalog import Alias, CatalogError, Entry, Fallback, Split, check_acyclic
from router.catalog.candidates import candidates, choose, reachable

WEIGHTS = st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 10.0), min_size=1, max_size=4)
ENTRIES = st.dictionaries(
    st.sampled_from("abcdef"),
    st.one_of(
        st.sampled_from("abcdef").map(lambda target: Alias(target=target)),
        st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1).map(
            lambda weights: Split(weights={name: float(w) for name, w in weights.items()})
        ),
        st.lists(st.sampled_from("abcdef"), min_size=2, unique=True).map(
            lambda chain: Fallback(chain=tuple(chain))
        ),
    ),
)
CASES = 4000


def people(count: int) -> list[bytes]:
    return [f"session-{number}".encode() for number in range(count)]


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 95.0, "b": 5.0}, {"a": 3.0}])
def test_a_split_gives_each_its_share(weights: dict[str, float]) -> None:
    found = Counter(choose(weights, "name", who) for who in people(CASES))
    for target, weight in weights.items():
        share = weight / sum(weights.values())
        # Five standard deviations of the binomial distribution; the sessions are always the same.
        most = 5 * math.sqrt(CASES * share * (1 - share))
        assert abs(found[target] - CASES * share) <= most


@given(weights=WEIGHTS, factor=st.floats(1.1, 5.0), data=st.data())
def test_a_session_moves_only_to_where_the_weight_has_grown(
    weights: dict[str, float], factor: float, data: st.DataObject
) -> None:
    grown = data.draw(st.sampled_from(sorted(weights)))
    after = weights | {grown: weights[grown] * factor}
    for who in people(20):
        assert choose(after, "name", who) in (choose(weights, "name", who), grown)


def test_two_splits_are_drawn_for_by_themselves() -> None:
    weights = {"a": 1.0, "b": 1.0}
    same = sum(choose(weights, "x", who) == choose(weights, "y", who) for who in people(CASES))
    assert abs(same - CASES / 2) <= 5 * math.sqrt(CASES / 4)


def test_a_name_that_is_no_entry_is_a_models() -> None:
    assert candidates({}, "m", b"who") == ("m",)


def test_an_entry_may_stand_before_the_model_of_its_name() -> None:
    entries: dict[str, Entry] = {
        "big": Fallback(chain=("big", "small")),
        "canary": Split(weights={"canary": 1.0}),
    }
    assert candidates(entries, "big", b"who") == ("big", "small")
    assert candidates(entries, "canary", b"who") == ("canary",)


def test_entries_are_followed_through_entries() -> None:
    entries: dict[str, Entry] = {
        "best": Alias(target="chain"),
        "chain": Fallback(chain=("mixed", "small", "left")),
        "mixed": Split(weights={"left": 1.0, "right": 1.0}),
    }
    assert reachable(entries, "best") == ("left", "right", "small")
    found = {candidates(entries, "best", who) for who in people(50)}
    assert found == {("left", "small"), ("right", "small", "left")}


@given(entries=ENTRIES, name=st.sampled_from("abcdef"), who=st.binary(max_size=8))
def test_whatever_stands_in_the_catalog_there_are_candidates(
    entries: dict[str, Entry], name: str, who: bytes
) -> None:
    found = candidates(entries, name, who)
    assert found
    assert len(set(found)) == len(found)
    assert set(found) <= set(reachable(entries, name))
    assert candidates(entries, name, who) == found


@given(entries=ENTRIES)
def test_circles_are_refused_unless_of_one(entries: dict[str, Entry]) -> None:
    def leads_to(name: str, goal: str, seen: frozenset[str]) -> bool:
        entry = entries.get(name)
        targets = set(entry.targets) - {name} if entry else set()
        return goal in targets or any(
            leads_to(target, goal, seen | {target}) for target in targets - seen
        )

    for name in entries:
        behind = {other for other in entries if leads_to(name, other, frozenset())} | {name}
        if any(leads_to(other, other, frozenset()) for other in behind):
            with pytest.raises(CatalogError, match="goes in a circle"):
                check_acyclic(entries, name)
        else:
            check_acyclic(entries, name)
