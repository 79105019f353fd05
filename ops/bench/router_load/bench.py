"""What a router adds to a request on its way to replicas and back, and what that costs."""

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

from ops.bench.peers.engine_spec import OURS
from ops.bench.peers.process import PeerError
from ops.bench.report import Row
from ops.bench.router_load.child import Child, child
from ops.bench.router_load.load import Outcome, Protocol
from ops.bench.router_load.routers import ray_serve, router_before, sglang_router_before
from ops.bench.router_load.turn import Engine, Figure, Sizes, Turn

BARE: Final = "bare server"
RAY_SERVE: Final = "ray-serve"
SGLANG_ROUTER: Final = "sglang-router"
PEERS: Final = (RAY_SERVE, SGLANG_ROUTER)

_BOTH: Sequence[Protocol] = ("grpc", "http")


def bench_load(runs: int, peers: Sequence[str], sizes: Sizes | None = None) -> list[Row]:
    """Time to first token, and CPU time for tokens and for requests.

    Beside servers that do nothing but send, and `peers`; of one that cannot be had, it is printed
    why. Raises ChildFailed if a process or a request fails.
    """
    return asyncio.run(_measure(runs, peers, sizes or Sizes()))


async def _measure(runs: int, peers: Sequence[str], sizes: Sizes) -> list[Row]:
    figures: dict[Figure, list[float]] = defaultdict(list)
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = await _start(peers, directory, stack)
        for engine in engines:
            await Turn(engine, figures).warm_up(sizes.warm_up_requests)
        for _ in range(runs):
            direct: dict[Protocol, Sequence[Outcome]] = {}
            for engine in engines:
                found = await Turn(engine, figures).measure(sizes, direct.get(engine.protocol, ()))
                if engine.name == BARE:
                    direct[engine.protocol] = found
    return [
        Row.over(values, bench="router load", model="", **figure._asdict())
        for figure, values in figures.items()
    ]


async def _start(peers: Sequence[str], directory: Path, stack: AsyncExitStack) -> Sequence[Engine]:
    """All engines; the bare servers, with which the others are compared, come first."""
    enter = stack.enter_async_context
    load, bare, replica = await asyncio.gather(
        enter(child("ops.bench.router_load.generator", directory=directory)),
        enter(child("ops.bench.router_load.bare", directory=directory)),
        enter(child("ops.bench.router_load.replica", directory=directory)),
    )
    ours = await enter(router_before(replica, directory))
    # Only those are flooded from which a message may bring several tokens, if they care to.
    engines = [Engine(BARE, protocol, bare, load, is_flooded=False) for protocol in _BOTH]
    engines += [Engine(OURS, protocol, ours, load, is_flooded=True) for protocol in _BOTH]
    try:
        if SGLANG_ROUTER in peers:
            peer = await enter(sglang_router_before(bare, directory))
            engines.append(Engine(SGLANG_ROUTER, "http", peer, load, is_flooded=True))
    except PeerError as error:
        print(f"{SGLANG_ROUTER}: {error}")
    if RAY_SERVE in peers:
        serve, caller = await enter(ray_serve(directory))
        itself = Child(caller.process, caller.pid, serve.addresses)
        engines += [
            Engine(RAY_SERVE, protocol, serve, load, is_flooded=False) for protocol in _BOTH
        ]
        engines.append(Engine(RAY_SERVE, "handle", itself, caller, is_flooded=False))
    return engines
