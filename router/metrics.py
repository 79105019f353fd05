"""What the router counts, for Prometheus; names follow vLLM's where the meaning is the same."""

import time
from contextlib import ExitStack

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
)

from router.progress import Progress

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)


class Metrics:
    """All series of one router, in a collector registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._serving = ExitStack()
        model = ("model",)
        self.time_to_first_token = self._histogram(
            "time_to_first_token_seconds", "From admission to the first token.", _LATENCY_S
        )
        self.queue_time = self._histogram(
            "request_queue_time_seconds", "From admission until the engine began.", _LATENCY_S
        )
        self.time_per_output_token = self._histogram(
            "time_per_output_token_seconds", "Mean gap between a request's tokens.", _TOKEN_S
        )
        self.e2e_latency = self._histogram(
            "e2e_request_latency_seconds", "From admission to the last token.", _LATENCY_S
        )
        self.prompt_tokens = self._counter(
            "prompt_tokens", "Prompt tokens of ended requests.", model
        )
        self.cached_prompt_tokens = self._counter(
            "cached_prompt_tokens", "Of these, found in the prefix cache.", model
        )
        self.generation_tokens = self._counter(
            "generation_tokens", "Tokens delivered to clients.", model
        )
        self.samples_finished = self._counter(
            "samples_finished", "Samples by finish reason.", ("model", "finish_reason")
        )
        self.requests_failed = self._counter(
            "requests_failed", "Requests by error reason.", ("model", "reason")
        )
        self.queue_wait = self._histogram(
            "queue_wait_seconds", "From the router's queue until it was let through.", _LATENCY_S
        )
        self.queue_length = self._gauge("queue_length", "Requests in the router's queue.", model)
        self.quota_away = self._counter(
            "quota_unchecked_requests", "Let in unchecked, because Redis was away.", ()
        )
        self.requests_refused = self._counter(
            "requests_refused", "Requests not tried, by whose and why.", ("tenant", "reason")
        )
        self.dispatches = self._counter(
            "dispatches", "Requests sent to a replica, by why it was tried.", ("model", "cause")
        )
        self.routing_decisions = self._counter(
            "routing_decisions",
            "Choices of a replica, by what they went by.",
            ("model", "policy", "basis"),
        )
        self.model_fallbacks = self._counter(
            "model_fallbacks",
            "Requests that went on to another model, by the one that could not take them.",
            ("model", "reason"),
        )
        self.catalog_age = self._gauge(
            "catalog_age_seconds", "Since the catalog was read; grows while Redis is away."
        )
        self.response_cache_lookups = self._counter(
            "response_cache_lookups",
            "Requests looked for in the response cache: hit, miss, broken, unavailable.",
            ("model", "result"),
        )
        self.response_cache_answers = self._counter(
            "response_cache_answers",
            "Answers to be kept there: kept, too_large, unavailable.",
            ("model", "result"),
        )
        self.response_cache_saved_tokens = self._counter(
            "response_cache_saved_tokens", "Tokens, also of prompts, not computed for it.", model
        )
        self.semantic_cache_lookups = self._counter(
            "semantic_cache_lookups",
            "Requests looked for in the semantic cache: hit, miss, broken, unavailable, failed.",
            ("model", "result"),
        )
        self.semantic_cache_answers = self._counter(
            "semantic_cache_answers",
            "Answers to be kept there: kept, too_large, unavailable.",
            ("model", "result"),
        )
        self.semantic_cache_saved_tokens = self._counter(
            "semantic_cache_saved_tokens", "Tokens not generated for it.", model
        )
        self.semantic_cache_embedding_time = self._histogram(
            "semantic_cache_embedding_seconds", "Embedding a prompt to look for it.", _LATENCY_S
        )
        self.load_exchange_failures = self._counter(
            "load_exchange_failures", "Times that other routers' load could not be read.", ()
        )
        self.hedges_won = self._counter(
            "hedges_won", "Requests that the second replica they were sent to began first.", model
        )
        self.requests_in_flight = self._gauge("requests_in_flight", "Requests accepted, not ended.")
        self.registry_age = self._gauge(
            "registry_age_seconds", "Since the registry was read; grows while Redis is away."
        )
        self.prefix_blocks = self._gauge(
            "prefix_index_blocks", "KV blocks known to be cached by some replica.", model
        )
        self.prefix_expected = self._gauge(
            "prefix_index_expected_blocks", "KV blocks that prompts just sent may leave.", model
        )
        self.prefix_replicas = self._gauge(
            "prefix_index_replicas", "Replicas whose cached blocks are known.", model
        )
        self.prefix_gaps = self._counter(
            "prefix_index_gaps", "Times that updates of a replica's cache were missing.", ()
        )
        self.prefix_resyncs = self._counter(
            "prefix_index_resyncs", "Times that all of a replica's cached blocks were read.", ()
        )
        self.prefix_age = self._gauge(
            "prefix_index_age_seconds", "Since Redis last said what replicas have cached."
        )
        self.replicas_ready = self._gauge("replicas_ready", "Replicas that take requests.", model)
        self.breakers = self._gauge(
            "replica_breakers",
            "Replicas by the state of the breaker that keeps requests away from those that fail.",
            ("model", "state"),
        )

    def serve(self, host: str, port: int) -> None:
        """Answer at a port of their own too, until `close`. Raises OSError if it is taken."""
        server, thread = start_http_server(port, host, self._registry)
        self._serving.callback(thread.join)
        self._serving.callback(server.server_close)
        self._serving.callback(server.shutdown)

    def close(self) -> None:
        """Answer no more at that port."""
        self._serving.close()

    def render(self) -> bytes:
        """All series in the text format of CONTENT_TYPE."""
        return generate_latest(self._registry)

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

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"trunkline:{name}", text, ("model",), buckets=buckets, registry=self._registry
        )

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"trunkline:{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"trunkline:{name}", text, labels, registry=self._registry)
