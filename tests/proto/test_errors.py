"""Failures become exceptions that say what a caller can do."""

import grpc
import pytest
import trunkline
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from trunkline import (
    AsyncClient,
    Client,
    FinishReason,
    InternalError,
    InvalidArgumentError,
    OverloadedError,
    RetryPolicy,
    TrunklineError,
)
from trunkline.errors import error_of
from trunkline.received import Received
from trunkline.v1 import inference_pb2 as pb

from tests.proto.fake_inference import Failure, FakeInference

ONCE = RetryPolicy(max_attempts=1)
DETAIL = pb.ErrorDetail(
    reason="INVALID_ARGUMENT",
    message="options.sampling.top_p: got 2, expected a number in (0, 1]",
    field="options.sampling.top_p",
    value="2",
    accepted="a number in (0, 1]",
)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("INVALID_ARGUMENT", "InvalidArgumentError"),
        ("OUT_OF_RANGE", "InvalidArgumentError"),
        ("UNAUTHENTICATED", "UnauthenticatedError"),
        ("PERMISSION_DENIED", "PermissionDeniedError"),
        ("NOT_FOUND", "ModelNotFoundError"),
        ("RESOURCE_EXHAUSTED", "OverloadedError"),
        ("DEADLINE_EXCEEDED", "DeadlineExceededError"),
        ("CANCELLED", "RequestCancelledError"),
        ("UNAVAILABLE", "UnavailableError"),
        ("INTERNAL", "InternalError"),
        ("UNKNOWN", "InternalError"),
        ("DATA_LOSS", "InternalError"),
        ("UNIMPLEMENTED", "TrunklineError"),
    ],
)
def test_each_status_has_its_exception(
    service: FakeInference, address: str, code: str, error: str
) -> None:
    service.failures = [Failure(grpc.StatusCode[code]), Failure(grpc.StatusCode[code])]
    with Client(address, retry=ONCE) as client:
        for call in (client.generate("Once").text, lambda: client.tokenize("a")):
            with pytest.raises(TrunklineError, match=f"status {code}") as caught:
                call()
            assert type(caught.value) is getattr(trunkline, error)
            assert caught.value.reason == code


def test_bad_input_is_named(service: FakeInference, address: str) -> None:
    service.failures = [Failure(grpc.StatusCode.INVALID_ARGUMENT, DETAIL)]
    with Client(address) as client, pytest.raises(InvalidArgumentError) as caught:
        client.generate("Once", top_p=2).text()
    error = caught.value
    assert str(error) == DETAIL.message
    assert (error.field, error.value, error.accepted) == (
        DETAIL.field,
        DETAIL.value,
        DETAIL.accepted,
    )


async def test_overload_says_when_to_come_back(service: FakeInference, address: str) -> None:
    detail = pb.ErrorDetail(reason="QUEUE_FULL", retry_after=Duration(seconds=1, nanos=500_000_000))
    service.failures = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, detail)]
    async with AsyncClient(address, retry=ONCE) as client:
        with pytest.raises(OverloadedError) as caught:
            await client.generate("Once").text()
    assert (caught.value.reason, caught.value.retry_after_s) == ("QUEUE_FULL", 1.5)


@given(st.binary())
def test_any_trailer_gives_an_exception(trailer: bytes) -> None:
    """What stands in the trailing metadata never hides the status."""
    metadata = grpc.aio.Metadata(("trunkline-error-bin", trailer))
    status = grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, metadata, metadata, "broken")
    assert isinstance(error_of(status), InternalError)


def test_text_of_a_sample_that_failed_is_not_passed_off_as_whole() -> None:
    received = Received(pb.GenerateRequest(options=pb.RequestOptions(request_id="r")))
    delta = received._take(
        pb.GenerateResponse(delta=pb.Delta(text="to", finish_reason=pb.FINISH_REASON_ERROR))
    )
    assert delta is not None
    assert delta.finish_reason is FinishReason.ERROR
    with pytest.raises(InternalError, match="sample 0"):
        received._whole_texts()
