"""How one who has failed leaves the other in peace."""

from collections.abc import Callable


class Pause:
    """A time in which something is not tried again, because it has just failed."""

    def __init__(self, length_s: float, clock: Callable[[], float]) -> None:
        self._length_s = length_s
        self._clock = clock
        self._end = float("-inf")

    @property
    def is_on(self) -> bool:
        """Whether it has begun and not ended."""
        return self._clock() < self._end

    def begin(self) -> None:
        """It has failed."""
        self._end = self._clock() + self._length_s
