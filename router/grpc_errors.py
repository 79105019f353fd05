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

STATUS_CODES: Final[Mapping[Reason, grpc.StatusCode]] = MappingProxyType(
    {
        Reason.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
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
    await context.abort(STATUS_CODES[error.reason], error.message, tuple(metadata))


def error_detail(error: RequestError) -> pb.ErrorDetail:
    """The error for programs."""
    detail = pb.ErrorDetail(
        reason=error.reason,
        message=error.message,
        field=error.field,
        value=error.value,
        accepted=error.accepted,
    )
    if error.retry_after_s is not None:
        retry_after = Duration()
        retry_after.FromNanoseconds(int(error.retry_after_s * 1e9))
        detail.retry_after.CopyFrom(retry_after)
    return detail
