"""What the router counts, for Prometheus; names follow vLLM's where the meaning is the same."""

import time
from contextlib import ExitStack

from prometheus_client import generate_latest, start_http_server

from router.fleet.fleet_metrics import FleetMetrics
from router.progress import Progress
from router.response_cache.cache_metrics import CacheMetrics
from router.series import MODEL, Series

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)


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
        self.time_to_first_token = series.histogram(
            "time_to_first_token_seconds", "From admission to the first token."
        )
        self.queue_time = series.histogram(
            "request_queue_time_seconds", "From admission until the engine began."
        )
        self.time_per_output_token = series.histogram(
            "time_per_output_token_seconds", "Mean gap between a request's tokens.", _TOKEN_S
        )
        self.e2e_latency = series.histogram(
            "e2e_request_latency_seconds", "From admission to the last token."
        )
        self.prompt_tokens = series.counter("prompt_tokens", "Prompt tokens of ended requests.")
        self.cached_prompt_tokens = series.counter(
            "cached_prompt_tokens", "Of these, found in the prefix cache."
        )
        self.generation_tokens = series.counter("generation_tokens", "Tokens delivered to clients.")
        self.samples_finished = series.counter(
            "samples_finished", "Samples by finish reason.", ("model", "finish_reason")
        )
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

    def count_tokens(self, model: str, progress: Progress) -> None:
        """Count the tokens of a request and their times, however it ended."""
        self.prompt_tokens.labels(model).inc(progress.prompt_tokens)
        self.cached_prompt_tokens.labels(model).inc(progress.cached_prompt_tokens)
        self.generation_tokens.labels(model).inc(progress.completion_tokens)
        if (seconds := progress.time_to_first_token_s) is not None:
            self.time_to_first_token.labels(model).observe(seconds)
        if (seconds := progress.queue_time_s) is not None:
            self.queue_time.labels(model).observe(seconds)

    def count_success(self, model: str, progress: Progress) -> None:
        """Count a request that was answered in full, if it was one for tokens."""
        if not progress.finish_reasons:
            return
        self.e2e_latency.labels(model).observe(time.monotonic() - progress.admitted_at)
        if (seconds := progress.time_per_output_token_s) is not None:
            self.time_per_output_token.labels(model).observe(seconds)
        for reason in progress.finish_reasons:
            self.samples_finished.labels(model, reason).inc()
