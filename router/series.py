"""Makes the series of one router's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
"""Bucket bounds for what a request waits for."""
MODEL = ("model",)
"""The label that nearly all have."""


class Series:
    """A collector registry, and the makers of what is in it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def histogram(self, name: str, text: str, buckets: tuple[float, ...] = LATENCY_S) -> Histogram:
        """By model, of seconds."""
        return Histogram(f"trunkline:{name}", text, MODEL, buckets=buckets, registry=self.registry)

    def counter(self, name: str, text: str, labels: tuple[str, ...] = MODEL) -> Counter:
        """By model, or other labels."""
        return Counter(f"trunkline:{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        """Without labels, or with these."""
        return Gauge(f"trunkline:{name}", text, labels, registry=self.registry)
