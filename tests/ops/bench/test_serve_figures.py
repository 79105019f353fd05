"""Figures follow from what was seen, by arithmetic that can be done by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.bench.load import Exchange, LoadError
from ops.bench.serve_figures import Metric, figures

STEADY = Exchange(sent_s=10, arrivals_s=(11, 12, 13), ended_s=14, num_tokens=3)
SLOW = Exchange(sent_s=12, arrivals_s=(15, 17), ended_s=20, num_tokens=5)
REFUSED = Exchange(9, (), 9.5, 0, LoadError("QUEUE_FULL", "full"))
BROKEN = Exchange(9, (30,), 40, 0, LoadError("CUT_OFF", "gone"))


def figure(exchanges: list[Exchange], name: str) -> float:
    return {metric.name: value for metric, value in figures(exchanges).items()}[name]


def test_latencies_of_one_request() -> None:
    assert figure([STEADY], "TTFT p50") == 1000
    assert figure([STEADY], "TPOT p99") == 1000
    assert figure([STEADY], "inter-token latency p90") == 1000
    assert figure([STEADY], "end-to-end latency p50") == 4000


def test_an_arrival_may_bring_several_tokens() -> None:
    assert figure([SLOW], "TPOT p50") == 500
    assert figure([SLOW], "inter-token latency p50") == 2000


def test_throughput_counts_good_requests_over_the_whole_span() -> None:
    both = [STEADY, SLOW]
    assert figure(both, "output throughput") == pytest.approx(8 / 10)
    assert figure(both, "request throughput") == pytest.approx(2 / 10)
    assert figure([*both, REFUSED], "output throughput") == pytest.approx(8 / 11)


def test_failures_are_counted_by_kind_and_kept_out_of_latencies() -> None:
    exchanges = [STEADY, REFUSED, REFUSED, BROKEN]
    assert figure(exchanges, "errors") == 3
    assert figure(exchanges, "errors: QUEUE_FULL") == 2
    assert figure(exchanges, "errors: CUT_OFF") == 1
    assert figure(exchanges, "TTFT p99") == 1000


def test_a_run_without_success_has_failures_alone() -> None:
    assert figures([REFUSED]) == {
        Metric("errors", "requests"): 1,
        Metric("errors: QUEUE_FULL", "requests"): 1,
    }


@st.composite
def exchanges(draw: st.DrawFn) -> Exchange:
    times_s = sorted(draw(st.lists(st.floats(0, 1e4), min_size=3, max_size=9)))
    sent_s, *arrivals_s, ended_s = times_s
    num_tokens = draw(st.integers(len(arrivals_s), 100))
    return Exchange(sent_s, tuple(arrivals_s), ended_s + 1, num_tokens)


@given(st.lists(exchanges(), min_size=1, max_size=10))
def test_percentiles_are_ordered_and_no_figure_is_negative(found: list[Exchange]) -> None:
    values = {metric.name: value for metric, value in figures(found).items()}
    assert min(values.values()) >= 0
    for name in ("TTFT", "end-to-end latency"):
        assert values[f"{name} p50"] <= values[f"{name} p90"] <= values[f"{name} p99"]
