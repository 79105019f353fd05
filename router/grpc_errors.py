"""RequestErrors as gRPC tells them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn

import grpc
from google.protobuf.duration_pb2 import Duration
from trunkline.v1 import inference_pb2 as pb

from cluster.errors import Reason, RequestError

ERROR_DETAIL_KEY: Final = "trunkline-error-bin"
RETRY_AFTER_KEY: Final = "retry-after"

# gRPC turns an error with more than 8 KiB of trailing metadata into RESOURCE_EXHAUSTED. A byte of
# the message takes up to three there, as its status, and a byte of the detail four thirds.
_MAX_MESSAGE_BYTES = 1000
_MAX_DETAIL_BYTES = 500

STATUS_CODES: Final[Mapping[Reason, grpc.StatusCode]] = MappingProxyType(
    {
        Reason.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
        Reason.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
        Reason.AUTH_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
        Reason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
        Reason.QUOTA_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Reason.MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
        Reason.QUEUE_FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
        Reason.NO_REPLICA: grpc.StatusCode.UNAVAILABLE,
        Reason.REPLICA_LOST: grpc.StatusCode.UNAVAILABLE,
        Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
        Reason.CANCELLED: grpc.StatusCode.CANCELLED,
        Reason.SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
        Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    }
)


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: RequestError) -> NoReturn:
    """End the call with the error's status, and its details in the trailing metadata."""
    metadata: list[tuple[str, str | bytes]] = [
        (ERROR_DETAIL_KEY, error_detail(error).SerializeToString())
    ]
    if error.retry_after_s is not None:
        metadata.append((RETRY_AFTER_KEY, f"{error.retry_after_s:.3f}"))
    message = _fit(error.message, _MAX_MESSAGE_BYTES)
    await context.abort(STATUS_CODES[error.reason], message, tuple(metadata))


def error_detail(error: RequestError) -> pb.ErrorDetail:
    """The error for programs."""
    detail = pb.ErrorDetail(
        reason=error.reason,
        message=_fit(error.message, _MAX_MESSAGE_BYTES),
        field=_fit(error.field, _MAX_DETAIL_BYTES),
        value=_fit(error.value, _MAX_DETAIL_BYTES),
        accepted=_fit(error.accepted, _MAX_DETAIL_BYTES),
    )
    if error.retry_after_s is not None:
        retry_after = Duration()
        retry_after.FromNanoseconds(int(error.retry_after_s * 1e9))
        detail.retry_after.CopyFrom(retry_after)
    return detail


def _fit(text: str, max_bytes: int) -> str:
    encoded = text.encode(errors="replace")
    if len(encoded) <= max_bytes:
        return text
    return encoded[: max_bytes - 3].decode(errors="ignore") + "…"
