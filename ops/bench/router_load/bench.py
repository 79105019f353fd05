"""What a router adds to a request on its way to replicas and back, and what that costs."""

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple

from ops.bench.peers.engine_spec import OURS
from ops.bench.peers.process import PeerError
from ops.bench.report import Row
from ops.bench.router_load.children import (
    Child,
    apply,
    child,
    router_before,
    sglang_router_before,
)
from ops.bench.router_load.load import Load, Outcome, Protocol

_TOKENS = 64
_PEER: Final = "sglang-router"
_SHORT_CLIENTS = 8
_WARM_UP_REQUESTS = 64
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

_FIRST_P50_MS = 2.0
_FIRST_P99_MS = 10.0
_GOAL_STREAMS = 32
"""Streams for which these are the goals."""
_MESSAGES = 30_000.0
_TOKENS_MERGED = 100_000.0
_SHORT_US = 400.0


class Paced(NamedTuple):
    """Streams whose tokens come in steps: so few a second that each is a message of its own."""

    streams: int
    interval_ms: int
    requests: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured in one run."""

    paced: Sequence[Paced] = (Paced(1, 5, 16), Paced(32, 20, 96), Paced(512, 200, 512))
    flooded: Mapping[int, int] = field(default_factory=lambda: {32: 160, 512: 512})
    """Requests by streams, where replicas are as fast as they can."""
    short_requests: int = 500


@dataclass(slots=True)
class Figures:
    """Values of several runs by work, metric and unit, in order; and what they should be."""

    values: dict[tuple[str, str, str], list[float]] = field(default_factory=dict)
    goals: dict[tuple[str, str, str], float | None] = field(default_factory=dict)

    def add(
        self, work: str, metric: str, unit: str, value: float, goal: float | None = None
    ) -> None:
        """Note the value of one run."""
        self.values.setdefault((work, metric, unit), []).append(value)
        self.goals[work, metric, unit] = goal

    def rows(self, engine: str) -> list[Row]:
        """A row for each figure."""
        return [
            Row.over(
                values,
                bench="router load",
                work=work,
                model="",
                engine=engine,
                metric=metric,
                unit=unit,
                limit=self.goals[work, metric, unit],
            )
            for (work, metric, unit), values in self.values.items()
        ]


def bench_load(runs: int, sizes: Sizes | None = None) -> list[Row]:
    """Added time to first token, and CPU time for tokens and for requests.

    Beside SGLang's router, if `make bench-peers` has installed it; if not, that is printed. Raises
    ChildFailed if a process or a request fails.
    """
    return asyncio.run(_measure(runs, sizes or Sizes()))


async def _measure(runs: int, sizes: Sizes) -> list[Row]:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        replica = await stack.enter_async_context(child("ops.bench.router_load.replica"))
        ours = await stack.enter_async_context(router_before(replica, directory))
        turns: list[tuple[str, Protocol, Child]] = [(OURS, "grpc", ours), (OURS, "http", ours)]
        try:
            peer = await stack.enter_async_context(sglang_router_before(replica, directory))
            turns.append((_PEER, "http", peer))
        except PeerError as error:
            print(f"{_PEER}: {error}")
        figures = {engine: Figures() for engine, *_ in turns}
        for _, protocol, router in turns:
            await _warm_up(protocol, router)
        for _, (engine, protocol, router) in product(range(runs), turns):
            await _measure_once(protocol, sizes, router, replica, figures[engine])
    return [row for engine, found in figures.items() for row in found.rows(engine)]


async def _warm_up(protocol: Protocol, router: Child) -> None:
    load = Load(protocol, "stream", _SHORT_CLIENTS, _WARM_UP_REQUESTS, _TOKENS, 0)
    await apply(router.addresses[protocol], load)


async def _measure_once(
    protocol: Protocol, sizes: Sizes, router: Child, replica: Child, figures: Figures
) -> None:
    for paced in sizes.paced:
        await _measure_paced(protocol, paced, router, replica, figures)
    for streams, requests in sizes.flooded.items():
        load = Load(protocol, "stream", streams, requests, _TOKENS, 0)
        await _measure_flooded(load, router, figures)
    short = Load(protocol, "whole", _SHORT_CLIENTS, sizes.short_requests, 1, 0)
    await _measure_short("answer of one token", short, router, figures)
    if protocol == "grpc":
        await _measure_short("tokenize", replace(short, kind="tokenize"), router, figures)


async def _measure_paced(
    protocol: Protocol, paced: Paced, router: Child, replica: Child, figures: Figures
) -> None:
    streams, interval_ms, requests = paced
    load = Load(protocol, "stream", streams, requests, _TOKENS, interval_ms)
    direct = await apply(replica.addresses[protocol], load)
    outcome, cpu_s = await _cpu(router, load)
    work = f"{protocol}, {streams} streams"
    for share, goal in ((0.5, _FIRST_P50_MS), (0.99, _FIRST_P99_MS)):
        added_s = _percentile(outcome.first_s, share) - _percentile(direct.first_s, share)
        limit = goal if streams == _GOAL_STREAMS else None
        figures.add(work, f"added TTFT p{share * 100:g}", "ms", added_s * 1e3, limit)
    figures.add(work, "token messages a core", "1/s", outcome.messages / cpu_s, _MESSAGES)
    figures.add(work, "tokens a message", "", outcome.tokens / outcome.messages)
    figures.add(work, f"CPU of a stream of {_TOKENS}", "ms", 1e3 * cpu_s / requests)


async def _measure_flooded(load: Load, router: Child, figures: Figures) -> None:
    outcome, cpu_s = await _cpu(router, load)
    work = f"{load.protocol}, {load.clients} streams, no pause between steps"
    figures.add(work, "tokens a core", "1/s", outcome.tokens / cpu_s, _TOKENS_MERGED)
    figures.add(work, "tokens a message", "", outcome.tokens / outcome.messages)


async def _measure_short(name: str, load: Load, router: Child, figures: Figures) -> None:
    _, cpu_s = await _cpu(router, load)
    work = f"{load.protocol}, {name}"
    figures.add(work, "CPU", "us", 1e6 * cpu_s / load.requests, _SHORT_US)


async def _cpu(router: Child, load: Load) -> tuple[Outcome, float]:
    """What came of a load, and the router's CPU time for it, of which one tick is the least."""
    before_s = router.cpu_s()
    outcome = await apply(router.addresses[load.protocol], load)
    return outcome, max(router.cpu_s() - before_s, _TICK_S)


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
