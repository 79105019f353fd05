"""Errors that every floor above raises and understands."""

from enum import StrEnum


class Reason(StrEnum):
    """Stable words for why a request failed; clients see them in ErrorDetail.reason."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    AUTH_UNAVAILABLE = "AUTH_UNAVAILABLE"
    """The key cannot be checked now, which says nothing against it."""
    PERMISSION_DENIED = "PERMISSION_DENIED"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    QUEUE_FULL = "QUEUE_FULL"
    NO_REPLICA = "NO_REPLICA"
    REPLICA_LOST = "REPLICA_LOST"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    INTERNAL = "INTERNAL"


class RequestError(Exception):
    """A request that cannot be served, with what its sender needs to know.

    `field`, `value` and `accepted` describe bad input; `retry_after_s` says when a refused
    request may be tried again.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        field: str = "",
        value: object = "",
        accepted: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.field = field
        self.value = _shorten(str(value))
        self.accepted = accepted
        self.retry_after_s = retry_after_s


def invalid(field: str, value: object, accepted: str) -> RequestError:
    """The error for a field whose value is not acceptable."""
    message = f"{field}: got {_shorten(repr(value))}, expected {accepted}"
    return RequestError(
        Reason.INVALID_ARGUMENT, message, field=field, value=value, accepted=accepted
    )


def _shorten(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
