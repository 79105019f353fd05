"""What a router counts of requests that have ended."""

import time

from router.progress import Progress
from router.series import Series

_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)


class RequestMetrics:
    """Series of requests, by model."""

    def __init__(self, series: Series) -> None:
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
        self._models: dict[str, ModelRequests] = {}

    def of(self, model: str) -> "ModelRequests":
        """Those of one model."""
        found = self._models.get(model)
        if found is None:
            found = self._models[model] = ModelRequests(self, model)
        return found


class ModelRequests:
    """Series of one model: looking for them by their labels takes longer than counting."""

    def __init__(self, metrics: RequestMetrics, model: str) -> None:
        self._time_to_first_token = metrics.time_to_first_token.labels(model)
        self._queue_time = metrics.queue_time.labels(model)
        self._time_per_output_token = metrics.time_per_output_token.labels(model)
        self._e2e_latency = metrics.e2e_latency.labels(model)
        self._prompt_tokens = metrics.prompt_tokens.labels(model)
        self._cached_prompt_tokens = metrics.cached_prompt_tokens.labels(model)
        self._generation_tokens = metrics.generation_tokens.labels(model)
        self._samples_finished = metrics.samples_finished
        self._model = model

    def count_tokens(self, progress: Progress) -> None:
        """Count the tokens of a request and their times, however it ended."""
        self._prompt_tokens.inc(progress.prompt_tokens)
        self._cached_prompt_tokens.inc(progress.cached_prompt_tokens)
        self._generation_tokens.inc(progress.completion_tokens)
        if (seconds := progress.time_to_first_token_s) is not None:
            self._time_to_first_token.observe(seconds)
        if (seconds := progress.queue_time_s) is not None:
            self._queue_time.observe(seconds)

    def count_success(self, progress: Progress) -> None:
        """Count a request that was answered in full, if it was one for tokens."""
        if not progress.finish_reasons:
            return
        self._e2e_latency.observe(time.monotonic() - progress.admitted_at)
        if (seconds := progress.time_per_output_token_s) is not None:
            self._time_per_output_token.observe(seconds)
        for reason in progress.finish_reasons:
            self._samples_finished.labels(self._model, reason).inc()
