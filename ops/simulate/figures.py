"""What a simulation amounts to."""

from statistics import fmean

import numpy as np

from ops.bench.serve_figures import Metric, figures
from ops.simulate.simulation import Outcome

TTFT_MEAN = Metric("TTFT mean", "ms")
BUSIEST = Metric("busiest replica", "x mean")
MOST_REQUESTS = Metric("most requests", "x mean")


def simulated_figures(outcome: Outcome) -> dict[Metric, float]:
    """As of a running server, and how evenly replicas were busy.

    Gaps between tokens are left out: only the first and the last token of an answer are known.
    """
    found = {
        metric: value
        for metric, value in figures(outcome.exchanges).items()
        if not metric.name.startswith(("inter-token", "errors"))
    }
    waits_s = [exchange.arrivals_s[0] - exchange.sent_s for exchange in outcome.exchanges]
    found[TTFT_MEAN] = 1e3 * fmean(waits_s)
    found[BUSIEST] = _peak(outcome.busy_s)
    found[MOST_REQUESTS] = _peak(outcome.requests)
    return found


def _peak(values: "np.typing.ArrayLike") -> float:
    array = np.asarray(values, dtype=np.float64)
    return float(array.max() / array.mean())
