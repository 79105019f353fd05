"""Nothing that came is lost or comes twice, whenever it is taken."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from router.fleet.ticket import Event, ReplicaFaulty, ReplicaLost, Ticket

ANSWER = list(range(100, 160))


def ticket(num_generated: int = 0, n: int = 3, cancelled: list[Ticket] | None = None) -> Ticket:
    submit = internal.Submit(handle=1, n=n, num_generated=num_generated)
    return Ticket(submit, ([] if cancelled is None else cancelled).append, asyncio.Event())


def piece(start: int, end: int, index: int = 0) -> internal.SampleOutput:
    """Tokens of the answer by their positions."""
    output = internal.SampleOutput(index=index, token_ids=ANSWER[start:end], position=start)
    for token_id in ANSWER[start:end]:
        output.logprobs.add().token.token_id = token_id
    return output


def tokens_of(events: list[Event], index: int = 0) -> list[int]:
    outputs = [e for e in events if isinstance(e, internal.SampleOutput) and e.index == index]
    tokens = [token_id for output in outputs for token_id in output.token_ids]
    assert [p.token.token_id for output in outputs for p in output.logprobs] == tokens
    return tokens


@given(
    sent=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(0, 8))),
    taken=st.lists(st.booleans(), min_size=50, max_size=50),
    num_generated=st.integers(0, 5),
)
def test_tokens_come_once_and_in_order_however_often_they_are_sent(
    sent: list[tuple[int, int, int]], taken: list[bool], num_generated: int
) -> None:
    """Each output begins some tokens before the last one's end: these are repeated."""
    waiting, events = ticket(num_generated), list[Event]()
    ends = [num_generated] * 3
    for (index, num_new, num_again), take in zip(sent, taken, strict=False):
        start = max(0, ends[index] - num_again)
        waiting.put_output(piece(start, max(ends[index], start + num_new), index))
        ends[index] = max(ends[index], start + num_new)
        if take:
            events += waiting.take()
    waiting.put_end(internal.RequestEnd(finished=internal.Finished()))
    events += waiting.take()
    assert isinstance(events.pop(), internal.RequestEnd)
    for index, end in enumerate(ends):
        assert tokens_of(events, index) == ANSWER[num_generated:end]


@given(num_generated=st.integers(0, 5), good=st.integers(0, 5), missing=st.integers(1, 5))
def test_a_gap_ends_the_request_before_it(num_generated: int, good: int, missing: int) -> None:
    """What came before it is good; nothing that comes after it is taken."""
    cancelled: list[Ticket] = []
    waiting = ticket(num_generated, n=1, cancelled=cancelled)
    end = num_generated + good
    waiting.put_output(piece(num_generated, end))
    waiting.put_output(piece(end + missing, end + missing + 2))
    assert cancelled == [waiting]
    assert tokens_of(waiting.take()) == ANSWER[num_generated:end]
    with pytest.raises(ReplicaFaulty, match=f"after {end} tokens"):
        waiting.take()


def test_a_sample_that_was_not_asked_for_ends_the_request() -> None:
    waiting = ticket(n=1)
    waiting.put_output(piece(0, 1, index=1))
    with pytest.raises(ReplicaFaulty, match="no such sample"):
        waiting.take()


def test_how_a_sample_ended_survives_merging() -> None:
    waiting = ticket()
    waiting.put_output(piece(0, 1))
    last = piece(1, 2)
    last.finish_reason, last.stop_token_id = pb.FINISH_REASON_STOP, ANSWER[1]
    waiting.put_output(last)
    (output,) = waiting.take()
    assert isinstance(output, internal.SampleOutput)
    assert list(output.token_ids) == ANSWER[:2]
    assert output.position == 0
    assert (output.finish_reason, output.stop_token_id) == (pb.FINISH_REASON_STOP, ANSWER[1])


def test_what_came_before_the_loss_is_taken_first() -> None:
    waiting = ticket()
    assert waiting.take() == []
    waiting.put_output(piece(0, 1))
    waiting.lose("gone")
    assert len(waiting.take()) == 1
    for _ in range(2):
        with pytest.raises(ReplicaLost, match="gone"):
            waiting.take()
