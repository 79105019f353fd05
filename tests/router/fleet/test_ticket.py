"""Nothing that came is lost, whenever it is taken."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from router.fleet.ticket import ReplicaLost, Ticket

OUTPUTS = st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 9), min_size=1)))


def ticket() -> Ticket:
    return Ticket(1, 1, lambda ticket: None)


@given(outputs=OUTPUTS, taken=st.lists(st.booleans(), min_size=50, max_size=50))
async def test_tokens_of_a_sample_come_whole_and_in_order(
    outputs: list[tuple[int, list[int]]], taken: list[bool]
) -> None:
    waiting, events = ticket(), list[object]()
    for (index, token_ids), take in zip(outputs, taken, strict=False):
        waiting.put_output(internal.SampleOutput(index=index, token_ids=token_ids))
        if take:
            events += await waiting.take()
    waiting.put_end(internal.RequestEnd(finished=internal.Finished()))
    events += await waiting.take()
    assert isinstance(events.pop(), internal.RequestEnd)
    for index in range(3):
        received = [
            token_id
            for event in events
            if isinstance(event, internal.SampleOutput) and event.index == index
            for token_id in event.token_ids
        ]
        assert received == [t for i, token_ids in outputs[:50] if i == index for t in token_ids]


async def test_how_a_sample_ended_survives_merging() -> None:
    waiting = ticket()
    waiting.put_output(internal.SampleOutput(token_ids=[1]))
    waiting.put_output(
        internal.SampleOutput(token_ids=[2], finish_reason=pb.FINISH_REASON_STOP, stop_token_id=2)
    )
    (output,) = await waiting.take()
    assert isinstance(output, internal.SampleOutput)
    assert list(output.token_ids) == [1, 2]
    assert (output.finish_reason, output.stop_token_id) == (pb.FINISH_REASON_STOP, 2)


async def test_what_came_before_the_loss_is_taken_first() -> None:
    waiting = ticket()
    waiting.put_output(internal.SampleOutput(token_ids=[1]))
    waiting.lose("gone")
    assert len(await waiting.take()) == 1
    for _ in range(2):
        with pytest.raises(ReplicaLost, match="gone"):
            await waiting.take()
