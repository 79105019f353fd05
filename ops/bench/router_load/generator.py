"""The load's own process: `python -m ops.bench.router_load.generator`.

It prints `{}`, for it listens nowhere, and reads lines of JSON: an address and a `Load`. When the
clients are connected, and of a flood all streams but the last have begun, it prints `ready`; after
another line of whatever it goes on, and prints an `Outcome`. It ends if any request fails.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from random import Random
from string import ascii_letters

import uvloop

from ops.bench.router_load.clients import GrpcClient, HttpClient, Seen
from ops.bench.router_load.load import Load, Outcome
from ops.bench.router_load.ray_client import HandleClient

_CHANNELS = 8
_PROMPT_TOKENS = 32

Client = GrpcClient | HttpClient | HandleClient
Go = Callable[[], Awaitable[None]]


async def run_load(address: str, load: Load, go: Go) -> Outcome:
    """Send all requests, from when `go` has returned, and wait for their answers."""
    async with AsyncExitStack() as stack:
        clients = await _connect(address, load, stack)
        if load.is_flood:
            seen = await _flood(clients, load, go)
        else:
            await go()
            numbers = itertools.count()
            found = await asyncio.gather(
                *(
                    _one_after_the_other(
                        client, load, lambda: next(numbers), place * load.spread_s / load.clients
                    )
                    for place, client in enumerate(clients)
                )
            )
            seen = [one for of_client in found for one in of_client]
    for one in seen:
        if load.kind != "tokenize" and one.tokens != load.max_tokens:
            raise ValueError(f"tokens: got {one.tokens}, expected {load.max_tokens}")
    return Outcome(
        [one.first_s for one in seen],
        sum(one.messages for one in seen),
        sum(one.tokens for one in seen),
    )


async def _connect(address: str, load: Load, stack: AsyncExitStack) -> Sequence[Client]:
    enter = stack.enter_async_context
    if load.protocol == "http":
        return [await enter(HttpClient.connect(address)) for _ in range(load.clients)]
    if load.protocol == "handle":
        return [HandleClient(address)] * load.clients
    channels = min(_CHANNELS, load.clients)
    shared = [await enter(GrpcClient.connect(address)) for _ in range(channels)]
    return [shared[number % channels] for number in range(load.clients)]


async def _flood(clients: Sequence[Client], load: Load, go: Go) -> Sequence[Seen]:
    begun = asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        streams = [
            group.create_task(client.stream(_prompt(number, load), load.max_tokens, begun.release))
            for number, client in enumerate(clients[:-1])
        ]
        for _ in streams:
            await begun.acquire()
        await go()
        last = group.create_task(clients[-1].stream(_prompt(-1, load), load.max_tokens))
    return [stream.result() for stream in (*streams, last)]


async def _one_after_the_other(
    client: Client, load: Load, next_number: Callable[[], int], wait_s: float
) -> list[Seen]:
    ask: Callable[[str, int], Awaitable[Seen]] = getattr(client, load.kind)
    seen = []
    while (number := next_number()) < load.requests:
        await asyncio.sleep(wait_s)
        # Not in step with the steps, in which the request before has ended.
        wait_s = Random(number).uniform(0, 2 * load.interval_ms / 1000)
        seen.append(await ask(_prompt(number, load), load.max_tokens))
    return seen


def _prompt(number: int, load: Load) -> str:
    letters = Random(number).choices(ascii_letters, k=_PROMPT_TOKENS)
    return (load.pace.in_prompt() + "".join(letters))[:_PROMPT_TOKENS]


async def _serve() -> None:
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)

    async def go() -> None:
        print("ready", flush=True)
        await orders.readline()

    print("{}", flush=True)
    while line := await orders.readline():
        address, load = json.loads(line)
        print(json.dumps(asdict(await run_load(address, Load(**load), go))), flush=True)


if __name__ == "__main__":
    uvloop.run(_serve())
