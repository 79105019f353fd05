"""Many clients at a time, each of which gets the answer that it would get alone."""

import asyncio
from collections.abc import Awaitable, Callable

from openai import AsyncOpenAI
from trunkline import AsyncClient, Client

from tests.e2e.cluster import Cluster

NUM_CLIENTS = 64
PROMPTS = [
    "def main():\n    " if number % 2 else f"The list type number {number} " * (1 + number % 5)
    for number in range(NUM_CLIENTS)
]


def max_tokens(number: int) -> int:
    return 4 + number % 13


def temperature(number: int) -> float:
    """Every other one is greedy, the others are seeded with their number."""
    return float(number % 2)


async def over_grpc(address: str, number: int) -> str:
    async with AsyncClient(address) as client:
        stream = client.generate(
            PROMPTS[number],
            max_tokens=max_tokens(number),
            temperature=temperature(number),
            seed=number,
        )
        return await stream.text()


async def over_http(url: str, number: int) -> str:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(
            model="demo",
            prompt=PROMPTS[number],
            max_tokens=max_tokens(number),
            temperature=temperature(number),
            seed=number,
            stream=True,
        )
        return "".join([chunk.choices[0].text async for chunk in stream])


async def test_each_of_64_clients_gets_what_it_would_get_alone(
    cluster: Cluster, client: Client
) -> None:
    async def together(ask: Callable[[str, int], Awaitable[str]], address: str) -> list[str]:
        return await asyncio.gather(*(ask(address, number) for number in range(NUM_CLIENTS)))

    alone = [await over_grpc(cluster.grpc, number) for number in range(NUM_CLIENTS)]
    assert await together(over_grpc, cluster.grpc) == alone
    assert await together(over_http, cluster.http) == alone
    assert await cluster.is_idle()
