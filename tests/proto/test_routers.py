"""Several routers: load is spread over them, and the loss of one is not seen."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline import AsyncClient, Client, RetryPolicy, UnavailableError
from trunkline.received import Received
from trunkline.routers import Rotation
from trunkline.v1 import inference_pb2 as pb

from tests.proto.fake_inference import WORDS, Failure, FakeInference, serve

FAST = RetryPolicy(max_attempts=4, initial_pause_s=0.001, max_pause_s=0.01)
DEAD = "localhost:1"
"""Nothing listens there."""
WHOLE = "".join(WORDS)


def lost(after_words: int) -> Failure:
    return Failure(grpc.StatusCode.UNAVAILABLE, after_words=after_words)


@pytest.fixture
def routers() -> Iterator[tuple[list[FakeInference], list[str]]]:
    """Two of them, and their addresses."""
    with ExitStack() as stack:
        services = [FakeInference(), FakeInference()]
        yield services, [stack.enter_context(serve(service)) for service in services]


def test_requests_take_turns(routers: tuple[list[FakeInference], list[str]]) -> None:
    services, addresses = routers
    with Client(addresses, retry=FAST) as client:
        for _ in range(6):
            client.generate("Once").text()
    assert [len(service.generations) for service in services] == [3, 3]


def test_a_router_that_is_away_is_not_missed(service: FakeInference, address: str) -> None:
    with Client([DEAD, address], retry=FAST) as client:
        assert {client.generate("Once").text() for _ in range(10)} == {WHOLE}
        assert client.tokenize("a", special_tokens=False) == [97]
        assert client.models()


async def test_a_router_that_is_away_is_not_missed_in_asyncio(
    service: FakeInference, address: str
) -> None:
    async with AsyncClient([DEAD, address], retry=FAST) as client:
        assert {await client.generate("Once").text() for _ in range(10)} == {WHOLE}
        assert await client.tokenize("a", special_tokens=False) == [97]


def test_no_address_is_an_error() -> None:
    with pytest.raises(ValueError, match="address"):
        Client([])


@pytest.mark.parametrize("wish", [{"seed": 1}, {"temperature": 0.0}])
@pytest.mark.parametrize("n", [1, 3])
def test_an_answer_that_can_be_had_again_goes_on_at_another_router(
    routers: tuple[list[FakeInference], list[str]], wish: dict[str, float], n: int
) -> None:
    """Each token and each piece of text comes once, under one request id."""
    services, addresses = routers
    for service in services:
        service.failures = [lost(2)]
    services[0].failures.append(lost(4))
    with Client(addresses, retry=FAST) as client:
        stream = client.generate("Once", n=n, **wish)  # type: ignore[arg-type]
        deltas = list(stream)
    for index in range(n):
        own = [delta for delta in deltas if delta.index == index]
        assert [token_id for delta in own for token_id in delta.token_ids] == list(
            range(len(WORDS))
        )
        assert "".join(delta.text for delta in own) == WHOLE
        assert [bool(delta.finish_reason) for delta in own] == [False] * (len(own) - 1) + [True]
    assert stream.usage.completion_tokens == n * len(WORDS)
    sent = [request for service in services for request in service.generations]
    assert len(sent) in (3, 4)
    assert len({request.options.request_id for request in sent}) <= 2  # the first had none


async def test_an_answer_that_can_be_had_again_goes_on_at_another_router_in_asyncio(
    routers: tuple[list[FakeInference], list[str]],
) -> None:
    services, addresses = routers
    for service in services:
        service.failures = [lost(3)]
    async with AsyncClient(addresses, retry=FAST) as client:
        assert await client.generate("Once", seed=5).text() == WHOLE


def test_attempts_are_bounded(routers: tuple[list[FakeInference], list[str]]) -> None:
    services, addresses = routers
    for service in services:
        service.failures = [lost(2)] * 10
    with Client(addresses, retry=FAST) as client, pytest.raises(UnavailableError):
        client.generate("Once", seed=5).text()
    assert sum(len(service.generations) for service in services) == FAST.max_attempts


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(count=st.integers(1, 5), down=st.sets(st.integers(0, 4)))
def test_routers_that_have_failed_are_left_out_for_a_while(count: int, down: set[int]) -> None:
    clock = Clock()
    rotation = Rotation(count, clock)
    down = {router for router in down if router < count}
    for router in down:
        rotation.fail(router, UnavailableError("gone", reason="UNAVAILABLE"))
    turns = [rotation.next() for _ in range(2 * count)]
    assert set(turns) == set(range(count)) - down or len(down) == count
    clock.now_s = 10.0
    turns = [rotation.next() for _ in range(2 * count)]
    assert sorted(turns) == sorted(2 * list(range(count)))


def test_a_router_is_not_blamed_for_its_replicas() -> None:
    rotation = Rotation(2, Clock())
    rotation.fail(0, UnavailableError("none", reason="NO_REPLICA"))
    assert {rotation.next() for _ in range(2)} == {0, 1}


ANSWER = [(number, text) for number, text in enumerate(["a", "", "bc", "", "", "def", "g", "h"])]
CUTS = st.lists(st.integers(0, len(ANSWER)))


def responses(cuts: list[int], end: int) -> Iterator[pb.GenerateResponse]:
    """The first tokens of the answer, cut into deltas; the last one tells the sample's end."""
    borders = sorted({0, end, *(cut for cut in cuts if cut < end)})
    for start, stop in pairwise(borders):
        part = ANSWER[start:stop]
        delta = pb.Delta(token_ids=[t for t, _ in part], text="".join(text for _, text in part))
        if stop == len(ANSWER):
            delta.finish_reason = pb.FINISH_REASON_STOP
        yield pb.GenerateResponse(delta=delta)


@given(tries=st.lists(st.tuples(CUTS, st.integers(0, len(ANSWER))), max_size=3), cuts=CUTS)
def test_what_arrives_again_is_left_out_however_it_is_cut(
    tries: list[tuple[list[int], int]], cuts: list[int]
) -> None:
    received, deltas = Received(pb.GenerateRequest()), []
    for cut, end in [*tries, (cuts, len(ANSWER))]:
        deltas += [received._take(response) for response in responses(cut, end)]
        received._rewind()
    tokens = [token_id for delta in deltas if delta for token_id in delta.token_ids]
    assert tokens == [token_id for token_id, _ in ANSWER]
    assert "".join(delta.text for delta in deltas if delta) == "".join(t for _, t in ANSWER)
    assert sum(bool(delta.finish_reason) for delta in deltas if delta) == 1


def test_an_answer_that_changes_is_an_error_and_never_a_mixture() -> None:
    received = Received(pb.GenerateRequest())
    received._take(pb.GenerateResponse(delta=pb.Delta(token_ids=[1, 2], text="ab")))
    received._rewind()
    with pytest.raises(UnavailableError, match="another one"):
        received._take(pb.GenerateResponse(delta=pb.Delta(token_ids=[1, 3], text="ac")))
