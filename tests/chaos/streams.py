"""Streams that are read while something happens to the cluster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from trunkline import AsyncClient, RetryPolicy

from tests.e2e.cluster import Cluster
from tests.e2e.patience import eventually

NUM_STREAMS = 32
MAX_TOKENS = 150
Tokens = list[dict[int, list[int]]]
"""Of each stream, by sample."""
_undisturbed: dict[str, Tokens] = {}
"""By the address of the cluster."""
_PROMPTS = ("def main", "import os", "The quick", "class A:\n", "x = [1, 2", "Once upon")


def wishes() -> list[dict[str, Any]]:
    """What each stream asks for: half of them greedy, some of several samples."""
    common: dict[str, Any] = {"max_tokens": MAX_TOKENS, "ignore_eos": True}
    return [
        common
        | {"prompt": f"{_PROMPTS[i % len(_PROMPTS)]} {i}"}
        | ({"temperature": 0.0} if i % 2 else {"seed": i, "n": 1 + (i % 8 == 0)})
        | ({"presence_penalty": 0.5} if i % 4 == 2 else {})
        for i in range(NUM_STREAMS)
    ]


@dataclass
class Streams:
    """Streams of one client; they are all `midway` when each has some tokens."""

    client: AsyncClient
    midway: asyncio.Event = field(default_factory=asyncio.Event)
    _num_begun: int = 0

    async def run(self) -> Tokens:
        """The tokens of each stream by sample. Raises what any of them raises."""
        return list(await asyncio.gather(*(self._read(wish) for wish in wishes())))

    async def _read(self, wish: dict[str, Any]) -> dict[int, list[int]]:
        samples: dict[int, list[int]] = {}
        has_begun = False
        async for delta in self.client.generate(**wish):
            samples.setdefault(delta.index, []).extend(delta.token_ids)
            if not has_begun and len(samples[0]) >= MAX_TOKENS // 10:
                has_begun = True
                self._num_begun += 1
                if self._num_begun == NUM_STREAMS:
                    self.midway.set()
        return samples


async def undisturbed(address: str) -> Tokens:
    """The tokens of all streams when nothing happens; found out once for each cluster."""
    if address not in _undisturbed:
        async with AsyncClient(address, retry=RetryPolicy(max_attempts=1)) as client:
            _undisturbed[address] = await Streams(client).run()
    return _undisturbed[address]


@asynccontextmanager
async def streaming(cluster: Cluster, *more: str) -> AsyncIterator[Streams]:
    """Streams at their middle; at the end they have to bring what they would have undisturbed."""
    await eventually(lambda: cluster.has_ready(2), "both replicas serve")
    expected = await undisturbed(cluster.grpc)
    # Without other routers, whatever is tried again, the router does it.
    retry = RetryPolicy(max_attempts=8 if more else 1)
    async with AsyncClient([cluster.grpc, *more], retry=retry) as client:
        streams = Streams(client)
        running = asyncio.create_task(streams.run())
        midway = asyncio.create_task(streams.midway.wait())
        await asyncio.wait({running, midway}, return_when=asyncio.FIRST_COMPLETED)
        assert not running.done(), "streams are too short to be disturbed"
        yield streams
        found = await running
    assert [len(found), *map(len, found)] == [NUM_STREAMS, *(w.get("n", 1) for w in wishes())]
    assert {len(tokens) for samples in found for tokens in samples.values()} == {MAX_TOKENS}
    assert found == expected
