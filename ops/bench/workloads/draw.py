"""What workloads are drawn from."""

from bisect import bisect
from itertools import accumulate
from random import Random

from ops.bench.workloads.session import Piece

_SPREAD = 0.5
"""Standard deviation of the logarithm of lengths and pauses."""
_WIDEST = 4.0
"""Lengths are within this factor of their median."""


class Zipf:
    """Draws 0, 1, ..., n - 1, each as often as 1 / (number + 1) ** exponent says."""

    def __init__(self, random: Random, n: int, exponent: float) -> None:
        self._random = random
        self._sums = list(accumulate(1 / (rank + 1) ** exponent for rank in range(n)))

    def draw(self) -> int:
        """A number below n."""
        return bisect(self._sums, self._random.random() * self._sums[-1])

    def distinct(self, count: int) -> list[int]:
        """`count` different numbers, in the order drawn."""
        drawn: dict[int, None] = {}
        while len(drawn) < count:
            drawn[self.draw()] = None
        return list(drawn)


class Draw:
    """Lengths, pauses and names by one seed; other seeds share no text."""

    def __init__(self, seed: str, scale: float) -> None:
        """`scale` multiplies all lengths."""
        self.random = Random(seed)
        self._seed = seed
        self._scale = scale

    def zipf(self, n: int, exponent: float) -> Zipf:
        """Popularities of n things."""
        return Zipf(self.random, n, exponent)

    def tokens(self, median: float) -> int:
        """A length in tokens, of a log-normal distribution cut off at four times the median."""
        return self._length(median, self.random)

    def common(self, kind: str, number: int, median: float) -> Piece:
        """A piece that requests share: always of the same length, drawn for it alone."""
        key = f"{self._seed}/{kind} {number}"
        return Piece(key, self._length(median, Random(key)))

    def own(self, name: str, median: float) -> Piece:
        """A piece of one request only; `name` is one that no other has."""
        return Piece(f"{self._seed}/{name}", self.tokens(median))

    def name(self, kind: str, number: int) -> str:
        """Of a session."""
        return f"{self._seed}/{kind}-{number}".replace("/", ".")

    def pause_s(self, median: float) -> float:
        """A pause, of the same kind of distribution as lengths."""
        return median * self._factor(self.random)

    def _length(self, median: float, random: Random) -> int:
        return max(1, round(self._scale * median * self._factor(random)))

    @staticmethod
    def _factor(random: Random) -> float:
        return min(max(random.lognormvariate(0.0, _SPREAD), 1 / _WIDEST), _WIDEST)
