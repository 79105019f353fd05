"""A replica whose leader is killed: who is hurt, who is not, and how soon it is replaced."""

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from trunkline import AsyncClient, FinishReason, RetryPolicy

from tests.e2e.cluster import Cluster
from tests.e2e.patience import eventually
from tests.e2e.settings import MAX_NUM_SEQS

NUM_PLACES = 2 * MAX_NUM_SEQS
NUM_REQUESTS = NUM_PLACES + MAX_NUM_SEQS
LONG_TOKENS = 300
REPLACED_WITHIN_S = 15.0
"""What is promised of a replica that is lost; a machine that is far too busy breaks it."""


@dataclass
class LongRequest:
    """A stream that has begun when `begun` is set. All of them bring the same tokens."""

    begun: asyncio.Event
    tokens: list[int] = field(default_factory=list)
    is_whole: bool = False

    async def run(self, client: AsyncClient) -> None:
        """Read it to its end."""
        async for delta in client.generate("x", max_tokens=LONG_TOKENS, ignore_eos=True, seed=3):
            self.tokens.extend(delta.token_ids)
            self.begun.set()
            self.is_whole = delta.finish_reason is FinishReason.LENGTH


def check_long(longs: Sequence[LongRequest]) -> None:
    """Each has come whole, with the tokens of those that nothing happened to."""
    assert all(long.is_whole for long in longs)
    assert {len(long.tokens) for long in longs} == {LONG_TOKENS}
    assert len({tuple(long.tokens) for long in longs}) == 1


async def test_a_killed_leader(cluster: Cluster) -> None:
    """Streams that have begun go on elsewhere, and requests that wait are served there."""
    await eventually(lambda: cluster.has_ready(2), "both replicas serve")
    # Whatever is tried again, the router does it.
    async with AsyncClient(cluster.grpc, retry=RetryPolicy(max_attempts=1)) as client:
        longs = [LongRequest(asyncio.Event()) for _ in range(NUM_REQUESTS)]
        running = [asyncio.create_task(long.run(client)) for long in longs]
        await eventually(lambda: is_busy(cluster), "both replicas compute, and requests wait")

        lost = (await cluster.replicas())[0]
        os.kill(lost.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        await eventually(lambda: cluster.has_replaced(lost.pid), "the replica is replaced")
        replaced_s = time.monotonic() - killed_at
        await asyncio.gather(*running)
    check_long(longs)
    assert cluster.leaders() == {record.pid for record in await cluster.replicas()}
    assert replaced_s <= REPLACED_WITHIN_S, f"load average {os.getloadavg()[0]:.1f}"


async def is_busy(cluster: Cluster) -> bool:
    """Whether each replica has begun requests, while others wait there or in the router."""
    num_waiting = sum(await cluster.metrics("waiting_requests")) + await cluster.num_queued()
    return num_waiting > 0 and min(await cluster.metrics("running_sequences")) > 0
