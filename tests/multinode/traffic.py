"""Requests that never cease while something happens to the cluster."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from trunkline import AsyncClient, FinishReason, RetryPolicy, UnavailableError

NUM_CLIENTS = 3
_MAX_TOKENS = 48
_TIMEOUT_S = 30.0
"""Longer than anything the router waits for; who waits so long has been forgotten."""


class Traffic:
    """A few clients that ask again as soon as they are answered; the router alone tries again."""

    def __init__(self) -> None:
        self.num_answered = 0
        self.num_lost = 0
        """Requests whose replica was lost when they had begun to be answered."""
        self._answered = asyncio.Condition()

    async def answered(self, count: int) -> None:
        """Return when so many more requests have been answered in full."""
        enough = self.num_answered + count
        async with self._answered:
            await self._answered.wait_for(lambda: self.num_answered >= enough)

    async def ask(self, client: AsyncClient) -> None:
        """Ask without end. Raises whatever else than the loss of a replica befalls a request."""
        while True:
            num_tokens = 0
            try:
                stream = client.generate(
                    "x", max_tokens=_MAX_TOKENS, ignore_eos=True, timeout_s=_TIMEOUT_S
                )
                async for delta in stream:
                    num_tokens += len(delta.token_ids)
            except UnavailableError:
                assert num_tokens > 0, "a request that has not begun goes to another replica"
                self.num_lost += 1
            else:
                assert (num_tokens, delta.finish_reason) == (_MAX_TOKENS, FinishReason.LENGTH)
                self.num_answered += 1
                async with self._answered:
                    self._answered.notify_all()


@asynccontextmanager
async def traffic(address: str) -> AsyncIterator[Traffic]:
    """Traffic at the router of this address. Raises ExceptionGroup if a request goes wrong."""
    going = Traffic()
    async with (
        AsyncClient(address, retry=RetryPolicy(max_attempts=1)) as client,
        asyncio.TaskGroup() as group,
    ):
        clients = [group.create_task(going.ask(client)) for _ in range(NUM_CLIENTS)]
        yield going
        for task in clients:
            task.cancel()
