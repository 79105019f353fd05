"""The bound on what one router has under way at replicas."""

from collections.abc import Callable


class Places:
    """So many requests, of all models together, may be at replicas."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken = 0
        self._listeners: list[Callable[[], None]] = []

    @property
    def is_free(self) -> bool:
        """Whether there is one more."""
        return self._taken < self._limit

    def listen(self, on_free: Callable[[], None]) -> None:
        """Call this whenever one has been given back."""
        self._listeners.append(on_free)

    def take(self) -> None:
        """Have one; there must be one."""
        self._taken += 1

    def give_back(self) -> None:
        """Have one no more."""
        self._taken -= 1
        for on_free in self._listeners:
            on_free()
