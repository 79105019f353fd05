"""What a run of load amounts to."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ops.bench.load import Exchange

_PERCENTILES = (50, 90, 95, 99)
_ERRORS = "errors"


class Metric(NamedTuple):
    """What a figure measures."""

    name: str
    unit: str

    @property
    def counts_failures(self) -> bool:
        """Whether a run without this figure had none of it."""
        return self.name.startswith(_ERRORS)


CACHED = Metric("cached tokens", "%")
"""Of the prompts."""


def figures(exchanges: Sequence[Exchange]) -> dict[Metric, float]:
    """All figures of one run, times in milliseconds; latencies only if a request succeeded.

    TTFT runs from when a request was due to its first tokens; TPOT is the mean time of the tokens
    after the first ones; inter-token latency is each gap between two arrivals of tokens; throughput
    counts successful requests over the time from the first one due to the last one ended; cached
    tokens are a share of the prompts of those requests of which the server says it.
    """
    good = [exchange for exchange in exchanges if exchange.error is None]
    found: dict[Metric, float] = {}
    if good:
        found |= _throughput(exchanges, good)
        found |= _cached_share(good)
        found |= _percentiles("TTFT", [e.arrivals_s[0] - e.sent_s for e in good])
        found |= _percentiles("TPOT", [_tpot_s(e) for e in good if e.num_tokens > 1])
        gaps = [later - sooner for e in good for sooner, later in pairwise(e.arrivals_s)]
        found |= _percentiles("inter-token latency", gaps)
        found |= _percentiles("end-to-end latency", [e.ended_s - e.sent_s for e in good])
    errors = Counter(exchange.error.kind for exchange in exchanges if exchange.error is not None)
    found[Metric(_ERRORS, "requests")] = errors.total()
    for kind, count in sorted(errors.items()):
        found[Metric(f"{_ERRORS}: {kind}", "requests")] = count
    return found


def _throughput(exchanges: Sequence[Exchange], good: Sequence[Exchange]) -> dict[Metric, float]:
    begin_s = min(exchange.sent_s for exchange in exchanges)
    span_s = max(exchange.ended_s for exchange in good) - begin_s
    return {
        Metric("output throughput", "tokens/s"): sum(e.num_tokens for e in good) / span_s,
        Metric("request throughput", "requests/s"): len(good) / span_s,
    }


def _cached_share(good: Sequence[Exchange]) -> dict[Metric, float]:
    told = [(e.cached_tokens, e.num_prompt_tokens) for e in good if e.cached_tokens is not None]
    prompt_tokens = sum(length for _, length in told)
    if not prompt_tokens:
        return {}
    return {CACHED: 100 * sum(cached for cached, _ in told) / prompt_tokens}


def _percentiles(name: str, values_s: Sequence[float]) -> dict[Metric, float]:
    if not values_s:
        return {}
    values_ms = np.percentile(np.array(values_s) * 1e3, _PERCENTILES)
    return {
        Metric(f"{name} p{percent}", "ms"): float(value)
        for percent, value in zip(_PERCENTILES, values_ms, strict=True)
    }


def _tpot_s(exchange: Exchange) -> float:
    return (exchange.arrivals_s[-1] - exchange.arrivals_s[0]) / (exchange.num_tokens - 1)
