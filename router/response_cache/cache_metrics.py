"""What a cache of answers counts."""

from router.series import Series


class CacheMetrics:
    """Series of one cache, by model."""

    def __init__(self, series: Series, name: str, *, saved: str) -> None:
        """`name` is response_cache or semantic_cache; `saved` describes the tokens saved."""
        spoken, by_result = name.replace("_", " "), ("model", "result")
        self.lookups = series.counter(
            f"{name}_lookups",
            f"Requests looked for in the {spoken}, by what came of it.",
            by_result,
        )
        self.answers = series.counter(
            f"{name}_answers", "Answers to be kept there: kept, too_large, unavailable.", by_result
        )
        self.saved_tokens = series.counter(f"{name}_saved_tokens", saved)
