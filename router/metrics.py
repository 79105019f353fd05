"""What the router counts, for Prometheus; names follow vLLM's where the meaning is the same."""

from contextlib import ExitStack

from prometheus_client import generate_latest, start_http_server

from router.fleet.fleet_metrics import FleetMetrics
from router.request_metrics import RequestMetrics
from router.response_cache.cache_metrics import CacheMetrics
from router.series import MODEL, Series

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """All series of one router, in a collector registry of their own."""

    def __init__(self) -> None:
        self._series = series = Series()
        self._serving = ExitStack()
        self.fleet = FleetMetrics(series)
        self.response_cache = CacheMetrics(
            series, "response_cache", saved="Tokens, also of prompts, not computed for it."
        )
        self.semantic_cache = CacheMetrics(
            series, "semantic_cache", saved="Tokens not generated for it."
        )
        self.requests = RequestMetrics(series)
        self.requests_failed = series.counter(
            "requests_failed", "Requests by error reason.", ("model", "reason")
        )
        self.queue_wait = series.histogram(
            "queue_wait_seconds", "From the router's queue until it was let through."
        )
        self.queue_length = series.gauge("queue_length", "Requests in the router's queue.", MODEL)
        self.quota_away = series.counter(
            "quota_unchecked_requests", "Let in unchecked, because Redis was away.", ()
        )
        self.requests_refused = series.counter(
            "requests_refused", "Requests not tried, by whose and why.", ("tenant", "reason")
        )
        self.model_fallbacks = series.counter(
            "model_fallbacks",
            "Requests that went on to another model, by the one that could not take them.",
            ("model", "reason"),
        )
        self.catalog_age = series.gauge(
            "catalog_age_seconds", "Since the catalog was read; grows while Redis is away."
        )
        self.embedding_time = series.histogram(
            "semantic_cache_embedding_seconds", "Embedding a prompt to look for it."
        )
        self.requests_in_flight = series.gauge(
            "requests_in_flight", "Requests accepted, not ended."
        )

    def serve(self, host: str, port: int) -> None:
        """Answer at a port of their own too, until `close`. Raises OSError if it is taken."""
        server, thread = start_http_server(port, host, self._series.registry)
        self._serving.callback(thread.join)
        self._serving.callback(server.server_close)
        self._serving.callback(server.shutdown)

    def close(self) -> None:
        """Answer no more at that port."""
        self._serving.close()

    def render(self) -> bytes:
        """All series in the text format of CONTENT_TYPE."""
        return generate_latest(self._series.registry)
