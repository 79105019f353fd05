"""Rates are what replicas say; what nothing is known of is typical, and slowness is forgotten."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.prefill_rates import PrefillRates
from tests.router.fleet.test_load_estimate import Clock

RATES = st.floats(1.0, 1e6)


def test_nothing_is_believed_as_long_as_nothing_is_known() -> None:
    rates = PrefillRates()
    rates.learn("a", 0.0)
    assert (rates.believed("a"), rates.typical) == (0.0, 0.0)


@given(known=st.lists(RATES, min_size=1, max_size=9))
def test_an_unknown_replica_is_taken_for_a_typical_one(known: list[float]) -> None:
    rates = PrefillRates()
    for index, rate in enumerate(known):
        rates.learn(f"replica-{index}", rate)
    assert min(known) <= rates.believed("new") <= max(known)


@given(slow=st.floats(1.0, 99.0))
def test_a_slow_replica_that_gets_no_occasion_is_believed_typical_in_the_end(slow: float) -> None:
    clock = Clock()
    rates = PrefillRates(clock)
    for member, rate in (("slow", slow), ("b", 100.0), ("c", 100.0)):
        rates.learn(member, rate)
    beliefs = []
    for _ in range(20):
        beliefs.append(rates.believed("slow"))
        clock.now_s += 30.0
        rates.learn("slow", slow)
    assert beliefs[0] == pytest.approx(slow)
    assert beliefs == sorted(beliefs)
    assert beliefs[-1] > 99.9


def test_new_evidence_of_slowness_is_believed_at_once() -> None:
    clock = Clock()
    rates = PrefillRates(clock)
    for member, rate in (("slow", 10.0), ("b", 100.0), ("c", 100.0)):
        rates.learn(member, rate)
    clock.now_s += 300.0
    rates.learn("slow", 12.0)
    assert rates.believed("slow") == pytest.approx(12.0)


def test_a_replica_that_is_gone_does_not_count() -> None:
    rates = PrefillRates()
    rates.learn("a", 10.0)
    rates.learn("b", 1000.0)
    rates.forget("a")
    assert rates.believed("new") == 1000.0
    rates.forget("b")
    assert rates.believed("new") == 0.0


@given(st.lists(st.tuples(st.sampled_from("abc"), RATES), min_size=1, max_size=30))
def test_decodes_are_held_against_the_best_that_any_replica_has_done(
    reports: list[tuple[str, float]],
) -> None:
    """One that has decoded a single sequence so far is not taken for one that can do no more."""
    rates = PrefillRates()
    for member, rate in reports:
        rates.learn_decode(member, rate)
    best = max(rate for _, rate in reports)
    assert 0.999 ** len(reports) * best <= rates.best_decode <= best
    for member in "abc":
        rates.forget(member)
    assert rates.best_decode == 0.0


def test_a_rate_of_decoding_that_is_never_reached_again_is_forgotten() -> None:
    rates = PrefillRates()
    rates.learn_decode("a", 1000.0)
    for _ in range(5000):
        rates.learn_decode("a", 100.0)
    assert rates.best_decode == 100.0
