"""Streams that are read while something happens to the cluster."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from trunkline import AsyncClient, RetryPolicy

NUM_STREAMS = 32
MAX_TOKENS = 150
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

    async def run(self) -> list[dict[int, list[int]]]:
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


async def undisturbed(address: str) -> list[dict[int, list[int]]]:
    """The tokens of all streams when nothing happens."""
    async with AsyncClient(address, retry=RetryPolicy(max_attempts=1)) as client:
        return await Streams(client).run()
