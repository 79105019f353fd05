"""The load's own process: `python -m ops.bench.router_load.generator ADDRESS LOAD`.

LOAD is a `Load` in JSON; prints an `Outcome` in JSON. Fails if any request does.
"""

import asyncio
import itertools
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict
from random import Random
from string import ascii_letters

import uvloop

from ops.bench.router_load.clients import Client, GrpcClient, HttpClient, Seen
from ops.bench.router_load.load import Load, Outcome
from ops.bench.router_load.pace import first_letter

_CHANNELS = 8
_PROMPT_TOKENS = 32


async def run_load(address: str, load: Load) -> Outcome:
    """Send all requests and wait for their answers."""
    async with AsyncExitStack() as stack:
        clients: list[Client]
        if load.protocol == "grpc":
            shared = [
                await stack.enter_async_context(GrpcClient(address))
                for _ in range(min(_CHANNELS, load.clients))
            ]
            clients = [shared[number % len(shared)] for number in range(load.clients)]
        else:
            clients = [
                await stack.enter_async_context(HttpClient(address)) for _ in range(load.clients)
            ]
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
    return Outcome(
        [one.first_s for one in seen],
        sum(one.messages for one in seen),
        sum(one.tokens for one in seen),
    )


async def _one_after_the_other(
    client: Client, load: Load, next_number: Callable[[], int], wait_s: float
) -> list[Seen]:
    ask: Callable[[str, int], Awaitable[Seen]] = getattr(client, load.kind)
    seen = []
    while (number := next_number()) < load.requests:
        await asyncio.sleep(wait_s)
        random = Random(number)
        # Not in step with the steps, in which the request before has ended.
        wait_s = random.uniform(0, 2 * load.interval_ms / 1000)
        prompt = first_letter(load.interval_ms) + "".join(
            random.choices(ascii_letters, k=_PROMPT_TOKENS - 1)
        )
        one = await ask(prompt, load.max_tokens)
        if load.kind != "tokenize" and one.tokens != load.max_tokens:
            raise ValueError(f"tokens: got {one.tokens}, expected {load.max_tokens}")
        seen.append(one)
    return seen


def main() -> None:
    """See the module."""
    load = Load(**json.loads(sys.argv[2]))
    print(json.dumps(asdict(uvloop.run(run_load(sys.argv[1], load)))), flush=True)


if __name__ == "__main__":
    main()
