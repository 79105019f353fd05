"""Requests that never started are sent again; of others, those alone that answer the same again."""

import asyncio
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from trunkline import (
    AsyncClient,
    AsyncStream,
    Client,
    InternalError,
    OverloadedError,
    RequestCancelledError,
    RetryPolicy,
    Stream,
    TrunklineError,
    UnavailableError,
)
from trunkline.retry import Attempts
from trunkline.routers import Rotation
from trunkline.v1.inference_pb2 import ErrorDetail

from tests.proto.fake_inference import WORDS, Failure, FakeInference, serve

FAST = RetryPolicy(max_attempts=3, initial_pause_s=0.001, max_pause_s=0.01)
UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE)
REFUSED = Failure(
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorDetail(reason="QUEUE_FULL", retry_after=Duration(nanos=1_000_000)),
)
QUOTA_GONE = Failure(grpc.StatusCode.RESOURCE_EXHAUSTED)
BROKEN = Failure(grpc.StatusCode.INTERNAL)
LOST = Failure(grpc.StatusCode.UNAVAILABLE, after_words=1)


@dataclass(frozen=True)
class Interrupted(RetryPolicy):
    """Does something else in each pause."""

    interrupt: Callable[[], object] = tuple

    def pause_s(self, error: TrunklineError, failed_attempts: int, jitter: float) -> float:
        self.interrupt()
        return 0.0


pauses = st.floats(0, 1000)
jitters = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize("failures", [[UNAVAILABLE, REFUSED], [REFUSED], [UNAVAILABLE]])
def test_refused_requests_are_sent_again(
    service: FakeInference, address: str, failures: list[Failure]
) -> None:
    service.failures = list(failures)
    with Client(address, retry=FAST) as client:
        assert client.generate("Once").text() == "".join(WORDS)
    assert len(service.headers) == len(failures) + 1


async def test_refused_requests_are_sent_again_in_asyncio(
    service: FakeInference, address: str
) -> None:
    async with AsyncClient(address, retry=FAST) as client:
        service.failures = [UNAVAILABLE, REFUSED]
        assert await client.generate("Once").text() == "".join(WORDS)
        service.failures = [REFUSED, UNAVAILABLE]
        assert await client.tokenize("", special_tokens=False) == []
    assert len(service.headers) == 6


def test_unary_calls_are_sent_again(service: FakeInference, address: str) -> None:
    service.failures = [UNAVAILABLE, UNAVAILABLE]
    with Client(address, retry=FAST) as client:
        assert client.tokenize("a", special_tokens=False) == [97]


@pytest.mark.parametrize(
    ("failure", "error", "attempts"),
    [
        (UNAVAILABLE, UnavailableError, FAST.max_attempts),
        (REFUSED, OverloadedError, FAST.max_attempts),
        (QUOTA_GONE, OverloadedError, 1),
        (BROKEN, InternalError, 1),
    ],
)
def test_attempts_are_bounded(
    service: FakeInference,
    address: str,
    failure: Failure,
    error: type[TrunklineError],
    attempts: int,
) -> None:
    service.failures = [failure] * 10
    with Client(address, retry=FAST) as client, pytest.raises(error):
        client.generate("Once").text()
    assert len(service.headers) == attempts


def test_never_after_a_message_that_the_next_attempt_may_contradict(
    service: FakeInference, address: str
) -> None:
    service.failures = [LOST]
    with Client(address, retry=FAST) as client, pytest.raises(UnavailableError):
        client.generate("Once").text()
    assert len(service.headers) == 1


async def test_never_after_a_message_that_may_be_contradicted_in_asyncio(
    service: FakeInference, address: str
) -> None:
    service.failures = [LOST]
    async with AsyncClient(address, retry=FAST) as client:
        with pytest.raises(UnavailableError):
            await client.generate("Once").text()
    assert len(service.headers) == 1


def test_a_stream_closed_in_a_pause_is_not_begun_again(
    service: FakeInference, address: str
) -> None:
    service.failures = [UNAVAILABLE]
    streams: list[Stream] = []

    def close_all() -> None:
        for stream in streams:
            stream.close()

    policy = Interrupted(interrupt=close_all)
    with Client(address, retry=policy) as client:
        streams.append(client.generate("Once"))
        with pytest.raises(RequestCancelledError):
            streams[0].text()
    assert len(service.headers) == 1


async def test_a_stream_closed_in_a_pause_is_not_begun_again_in_asyncio(
    service: FakeInference, address: str
) -> None:
    service.failures = [UNAVAILABLE]
    streams: list[AsyncStream] = []
    closings: list[asyncio.Task[None]] = []
    policy = Interrupted(interrupt=lambda: closings.append(asyncio.create_task(streams[0].close())))
    async with AsyncClient(address, retry=policy) as client:
        streams.append(client.generate("Once"))
        with pytest.raises(RequestCancelledError):
            await streams[0].text()
    assert len(service.headers) == 1


def test_a_server_that_comes_up_late_is_reached(service: FakeInference) -> None:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    patient = RetryPolicy(max_attempts=1000, initial_pause_s=0.01, max_pause_s=0.02)
    texts: list[str] = []
    with Client(f"localhost:{port}", retry=patient) as client:
        reader = threading.Thread(target=lambda: texts.append(client.generate("Once").text()))
        reader.start()
        with serve(service, port=port):
            reader.join()
    assert texts == ["".join(WORDS)]


@given(st.integers(1, 100), pauses, jitters)
def test_pauses_are_bounded_and_honour_the_server(
    failed_attempts: int, asked_s: float, jitter: float
) -> None:
    policy = RetryPolicy(max_attempts=50, initial_pause_s=0.1, max_pause_s=10)
    error = OverloadedError("full", reason="QUEUE_FULL", retry_after_s=asked_s)
    pause_s = policy.pause_s(error, failed_attempts, jitter)
    if failed_attempts >= 50 or asked_s > 10:
        assert pause_s is None
    else:
        assert pause_s is not None
        assert asked_s <= pause_s <= 1.5 * 10


def test_pauses_double() -> None:
    policy = RetryPolicy(max_attempts=9, initial_pause_s=1, max_pause_s=10)
    error = UnavailableError("gone", reason="UNAVAILABLE")
    pauses_s = [policy.pause_s(error, failed, jitter=0) for failed in range(1, 7)]
    assert pauses_s == [1, 2, 4, 8, 10, 10]


def test_a_pause_that_the_deadline_would_end_is_not_begun() -> None:
    attempts = Attempts(RetryPolicy(initial_pause_s=1000, max_pause_s=1000), 100, Rotation(1))
    with pytest.raises(UnavailableError):
        attempts.pause_s(UnavailableError("gone", reason="UNAVAILABLE"))


@pytest.mark.parametrize(
    "settings",
    [{"max_attempts": 0}, {"initial_pause_s": -1}, {"initial_pause_s": 2, "max_pause_s": 1}],
)
def test_policies_that_make_no_sense_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="wants max_attempts"):
        RetryPolicy(**settings)
