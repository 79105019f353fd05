"""One engine's turn in a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ops.bench.router_load.child import Child, apply
from ops.bench.router_load.load import Kind, Load, Outcome, Protocol

_TOKENS = 64
_SHORT_CLIENTS = 8

_SHARES = {0.5: 2.0, 0.99: 10.0}
"""Percentiles of the time to first token, and the goals for what a router adds to it, in ms."""
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
    tokens: int = _TOKENS
    """Of a stream."""


class Flooded(NamedTuple):
    """Streams in step that get tokens as fast as the replica can make the router take them."""

    streams: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured in one run."""

    paced: Sequence[Paced] = (Paced(1, 5, 4), Paced(32, 20, 64), Paced(512, 200, 512, 24))
    flooded: Sequence[Flooded] = (Flooded(32, 1024), Flooded(512, 64))
    short_requests: int = 300
    warm_up_requests: int = 64


class Engine(NamedTuple):
    """What is measured, by one protocol."""

    name: str
    protocol: Protocol
    target: Child
    """Whose CPU time counts."""
    generator: Child
    is_flooded: bool


class Figure(NamedTuple):
    """What a row is about."""

    engine: str
    work: str
    metric: str
    unit: str
    limit: float | None


class Turn:
    """Measures an engine; `figures` takes what is found, by the runs."""

    def __init__(self, engine: Engine, figures: dict[Figure, list[float]]) -> None:
        self._engine = engine
        self._figures = figures

    async def warm_up(self, requests: int) -> None:
        """Have it answer as many, which is not measured."""
        await self._apply(Load(self._engine.protocol, "stream", _SHORT_CLIENTS, requests, _TOKENS))

    async def measure(self, sizes: Sizes, direct: Sequence[Outcome]) -> Sequence[Outcome]:
        """Everything once; returns what came of the paced loads.

        Time to first token is compared with that in `direct`, where there is any.
        """
        outcomes = [await self._measure_paced(paced) for paced in sizes.paced]
        for paced, outcome, bare in zip(sizes.paced, outcomes, direct, strict=False):
            self._compare(paced.streams, outcome, bare)
        for flooded in sizes.flooded if self._engine.is_flooded else ():
            await self._measure_flooded(flooded)
        await self._measure_short("answer of one token", "whole", sizes.short_requests)
        if self._engine.protocol == "grpc":
            await self._measure_short("tokenize", "tokenize", sizes.short_requests)
        return outcomes

    async def _measure_paced(self, paced: Paced) -> Outcome:
        streams, interval_ms, requests, tokens = paced
        load = Load(self._engine.protocol, "stream", streams, requests, tokens, interval_ms)
        outcome, cpu_s = await self._apply(load)
        work = f"{streams} streams"
        for share in _SHARES:
            first_s = _percentile(outcome.first_s, share)
            self._note(work, f"TTFT p{share * 100:g}", "ms", 1e3 * first_s)
        self._note(work, "token messages a core", "1/s", outcome.messages / cpu_s, _MESSAGES)
        self._note(work, "tokens a message", "", outcome.tokens / outcome.messages)
        self._note(work, f"CPU of a stream of {tokens}", "ms", 1e3 * cpu_s / requests)
        return outcome

    def _compare(self, streams: int, outcome: Outcome, bare: Outcome) -> None:
        for share, goal_ms in _SHARES.items():
            added_s = _percentile(outcome.first_s, share) - _percentile(bare.first_s, share)
            goal = goal_ms if streams == _GOAL_STREAMS else None
            metric = f"added TTFT p{share * 100:g}"
            self._note(f"{streams} streams", metric, "ms", 1e3 * added_s, goal)

    async def _measure_flooded(self, flooded: Flooded) -> None:
        """Of all tokens but the first, after which streams wait until all have begun."""
        streams, tokens = flooded
        load = Load(self._engine.protocol, "stream", streams, streams, tokens, is_flood=True)
        outcome, cpu_s = await self._apply(load)
        further, messages = outcome.tokens - streams, outcome.messages - streams
        work = f"{streams} streams, no pause between steps"
        self._note(work, "tokens a core", "1/s", further / cpu_s, _TOKENS_MERGED)
        self._note(work, "tokens a message", "", further / messages)

    async def _measure_short(self, work: str, kind: Kind, requests: int) -> None:
        _, cpu_s = await self._apply(
            Load(self._engine.protocol, kind, _SHORT_CLIENTS, requests, max_tokens=1)
        )
        self._note(work, "CPU", "us", 1e6 * cpu_s / requests, _SHORT_US)

    async def _apply(self, load: Load) -> tuple[Outcome, float]:
        return await apply(load, self._engine.target, self._engine.generator)

    def _note(
        self, work: str, metric: str, unit: str, value: float, limit: float | None = None
    ) -> None:
        name, protocol, *_ = self._engine
        self._figures[Figure(name, f"{protocol}, {work}", metric, unit, limit)].append(value)


def _percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
