"""Whether the Redis tier answers, and how fast."""

from time import monotonic

import structlog

log = structlog.get_logger(__name__)

TIMEOUT_S = 1.0
"""For one answer."""
_RETRY_S = 2.0
"""Nothing is asked of a server that has failed for so long."""
_MEMORY_S = 60.0
"""A rate that is older may be another one by now."""
_WEIGHT = 0.3
"""Of the newest value in the moving averages."""


class RedisHealth:
    """What readers and writers of one server have met with; on any thread."""

    def __init__(self) -> None:
        self._away_until = 0.0
        self._is_away = False
        self._latency_s = 0.0
        self._bytes_per_s = 0.0
        self._measured_at = 0.0

    @property
    def is_away(self) -> bool:
        """Whether to do without it for now."""
        return monotonic() < self._away_until

    def failed(self, reason: str) -> None:
        """It did not answer, or not well."""
        self._away_until = monotonic() + _RETRY_S
        if not self._is_away:
            self._is_away = True
            log.warning("the Redis tier is away; prefixes are computed again", reason=reason)

    def answered(self, seconds: float) -> None:
        """It took so long to answer a question without bytes."""
        self._latency_s = _average(self._latency_s, seconds)
        self.worked()

    def worked(self) -> None:
        """It did what it was asked for."""
        if self._is_away:
            self._is_away = False
            log.info("the Redis tier is back")

    def read(self, num_bytes: int, seconds: float) -> None:
        """It took so long to bring so many bytes to where they are used."""
        self._bytes_per_s = _average(self._bytes_per_s, num_bytes / seconds)
        self._measured_at = monotonic()

    def read_seconds(self, num_bytes: int) -> float:
        """What reading will take; 0, which is hope, while nothing recent is known."""
        if monotonic() - self._measured_at > _MEMORY_S or not self._bytes_per_s:
            return 0.0
        return self._latency_s + num_bytes / self._bytes_per_s


def _average(old: float, new: float) -> float:
    return new if not old else (1 - _WEIGHT) * old + _WEIGHT * new
