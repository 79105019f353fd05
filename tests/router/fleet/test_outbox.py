"""Frames carry everything once, in order, and no frame grows without bound."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trunkline.internal.v1 import replica_pb2 as internal

from router.fleet.outbox import FRAME_BYTES, Outbox


def submit(handle: int, num_tokens: int = 1) -> internal.Submit:
    return internal.Submit(handle=handle, prompt_token_ids=[1] * num_tokens)


async def test_what_gathers_while_a_frame_is_sent_goes_in_one_frame() -> None:
    outbox = Outbox()
    for handle in range(1, 6):
        outbox.submit(submit(handle))
    outbox.cancel(99)
    frame = await outbox.next_frame()
    assert [s.handle for s in frame.submits] == [1, 2, 3, 4, 5]
    assert list(frame.cancels) == [99]


async def test_a_request_cancelled_before_it_was_sent_is_not_sent() -> None:
    outbox = Outbox()
    outbox.submit(submit(1))
    outbox.submit(submit(2))
    outbox.cancel(1)
    frame = await outbox.next_frame()
    assert [s.handle for s in frame.submits] == [2]
    assert not frame.cancels


async def test_next_frame_waits_for_news() -> None:
    outbox = Outbox()
    outbox.submit(submit(1))
    outbox.cancel(1)
    waiting = asyncio.create_task(outbox.next_frame())
    await asyncio.sleep(0)
    assert not waiting.done()
    outbox.submit(submit(2))
    assert [s.handle for s in (await waiting).submits] == [2]


@pytest.mark.timeout(60)
@given(sizes=st.lists(st.integers(1, FRAME_BYTES), min_size=1, max_size=6), in_prompt=st.booleans())
async def test_large_requests_are_spread_over_frames(sizes: list[int], in_prompt: bool) -> None:
    outbox, seen = Outbox(), list[int]()
    for handle, size in enumerate(sizes):
        large = submit(handle, size if in_prompt else 1)
        large.stop.stop_token_ids.extend([] if in_prompt else [1] * size)
        outbox.submit(large)
    while len(seen) < len(sizes):
        frame = await outbox.next_frame()
        *all_but_last, _ = [s.ByteSize() for s in frame.submits]
        assert sum(all_but_last) < FRAME_BYTES
        seen.extend(s.handle for s in frame.submits)
    assert seen == list(range(len(sizes)))
