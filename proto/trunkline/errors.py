"""What can go wrong with a call, one exception for each thing a caller may do about it."""

from collections.abc import Iterable
from typing import Protocol, cast

import grpc
from google.protobuf.message import DecodeError

from trunkline.types import seconds
from trunkline.v1.inference_pb2 import ErrorDetail

_DETAIL_KEY = "trunkline-error-bin"


class TrunklineError(Exception):
    """A call that failed, and the base of all errors below."""

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        field: str = "",
        value: str = "",
        accepted: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        """The server's stable word for the cause, or the name of the gRPC status."""
        self.field = field
        """Path of the field at fault, as in the contract, if one is."""
        self.value = value
        """That field's value, as text."""
        self.accepted = accepted
        """What the field would accept."""
        self.retry_after_s = retry_after_s
        """How long to wait before trying again, if the server says so."""


class InvalidArgumentError(TrunklineError):
    """The request is wrong; `field`, `value` and `accepted` say how."""


class UnauthenticatedError(TrunklineError):
    """The API key is missing or unknown."""


class PermissionDeniedError(TrunklineError):
    """The API key does not allow this."""


class ModelNotFoundError(TrunklineError):
    """No model of this name is served."""


class OverloadedError(TrunklineError):
    """A queue or a quota is full; `retry_after_s` says when to come back."""


class DeadlineExceededError(TrunklineError, TimeoutError):
    """The call's time ran out."""


class RequestCancelledError(TrunklineError):
    """The call was cancelled, here or by the server."""


class UnavailableError(TrunklineError):
    """The server cannot be reached or cannot serve now."""


class InternalError(TrunklineError):
    """The server failed at this request."""


_BY_STATUS: dict[grpc.StatusCode, type[TrunklineError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgumentError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: OverloadedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.INTERNAL: InternalError,
    grpc.StatusCode.UNKNOWN: InternalError,
    grpc.StatusCode.DATA_LOSS: InternalError,
}


class _Status(Protocol):
    def code(self) -> grpc.StatusCode: ...
    def details(self) -> str | None: ...
    def trailing_metadata(self) -> object: ...


def error_of(status: _Status) -> TrunklineError:
    """The exception for a call that ended with a status other than OK."""
    detail = _detail(status)
    code = status.code()
    return _BY_STATUS.get(code, TrunklineError)(
        detail.message or status.details() or code.name,
        reason=detail.reason or code.name,
        field=detail.field,
        value=detail.value,
        accepted=detail.accepted,
        retry_after_s=seconds(detail.retry_after) if detail.HasField("retry_after") else None,
    )


def _detail(status: _Status) -> ErrorDetail:
    # Both of gRPC's interfaces iterate over (key, value); calls that never got an answer have None.
    trailers = cast("Iterable[tuple[str, str | bytes]] | None", status.trailing_metadata())
    for key, value in trailers or ():
        if key == _DETAIL_KEY and isinstance(value, bytes):
            try:
                return ErrorDetail.FromString(value)
            except DecodeError:
                # A proxy's or a newer server's trailer; the status alone still tells the cause.
                break
    return ErrorDetail()
