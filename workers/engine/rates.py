"""How fast an engine works, learned while it works."""

_WEIGHT = 0.1
"""Of the newest step in the moving averages."""


class Rates:
    """Moving averages of prompt and output tokens per second, each from the steps that are
    mostly of its kind."""

    def __init__(self) -> None:
        self.prefill_tokens_per_s = 0.0
        self.decode_tokens_per_s = 0.0

    def observe(self, num_prefill: int, num_decode: int, seconds: float) -> None:
        """One step computed so many prompt tokens and so many output tokens."""
        if num_prefill > num_decode:
            self.prefill_tokens_per_s = _average(self.prefill_tokens_per_s, num_prefill / seconds)
        elif num_decode and not num_prefill:
            self.decode_tokens_per_s = _average(self.decode_tokens_per_s, num_decode / seconds)


def _average(old: float, new: float) -> float:
    return new if old == 0.0 else (1 - _WEIGHT) * old + _WEIGHT * new
