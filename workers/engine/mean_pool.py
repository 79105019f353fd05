"""Embeddings of prompts: the mean of their rows."""

import numpy as np

Floats = np.ndarray[tuple[int], np.dtype[np.float32]]
Doubles = np.ndarray[tuple[int], np.dtype[np.float64]]


class MeanPool:
    """Adds up a prompt's final hidden states, chunk by chunk.

    In double precision, so that how the prompt was cut into chunks makes no difference beyond
    what it makes to the hidden states themselves.
    """

    def __init__(self) -> None:
        self._sum: Doubles | None = None
        self._num_rows = 0

    def add(self, start: int, num_rows: int, row_sum: Doubles) -> None:
        """Rows ``start .. start + num_rows`` of the prompt, summed: float64 [hidden_size].

        They follow on those before; from 0 on everything is added up anew, as a prompt that was
        preempted is computed again.
        """
        if start == 0 or self._sum is None:
            self._sum, self._num_rows = np.zeros_like(row_sum), 0
        assert start == self._num_rows, f"rows from {start} on, after {self._num_rows}"
        self._sum += row_sum
        self._num_rows += num_rows

    def embedding(self) -> Floats:
        """The mean of all rows, float32 [hidden_size], of length 1; zeros if that is all it is."""
        assert self._sum is not None, "there are no rows"
        mean = self._sum / self._num_rows
        length = float(np.linalg.norm(mean))
        return (mean / length if length else mean).astype(np.float32)
