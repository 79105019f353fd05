"""A running server under load: latencies, throughput and failures."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from ops.bench.load import Exchange, Target, Work, run_load
from ops.bench.load_arrivals import Arrivals, ClosedLoop
from ops.bench.load_grpc import GrpcTarget
from ops.bench.load_openai import OpenAITarget
from ops.bench.load_sessions import Pace, run_sessions
from ops.bench.report import Row
from ops.bench.serve_figures import CACHED, Metric, figures
from ops.bench.workloads.bound import best_cached_percent
from ops.bench.workloads.session import Session

_WARM_UP_REQUESTS = 4


@asynccontextmanager
async def open_target(
    address: str, *, api_key: str | None, timeout_s: float
) -> AsyncIterator[Target]:
    """An OpenAI endpoint if the address is an http(s) URL, otherwise Trunkline's gRPC."""
    kind = OpenAITarget if address.startswith(("http://", "https://")) else GrpcTarget
    target = kind(address, api_key=api_key, timeout_s=timeout_s)
    try:
        yield target
    finally:
        await target.close()


class Load(Protocol):
    """What is sent in a run; its text names it in the rows."""

    async def run(self, target: Target, model: str, seed: str) -> list[Exchange]:
        """Send it all and wait for the answers; other seeds, other prompts."""

    def best_cached_percent(self, seed: str) -> float | None:
        """Of its prompts' tokens, as many as one cache without bounds would hold; None: unknown."""


@dataclass(frozen=True, slots=True)
class PromptLoad:
    """Random prompts of one length."""

    work: Work
    arrivals: Arrivals

    async def run(self, target: Target, model: str, seed: str) -> list[Exchange]:
        """Send the prompts as `arrivals` paces them."""
        prompts = self.work.prompts(seed)
        return await run_load(target, model, prompts, self.work.output_tokens, self.arrivals)

    def best_cached_percent(self, seed: str) -> float | None:
        """Unknown: prompts are not made to share anything."""
        return None

    def __str__(self) -> str:
        return f"{self.work}, {self.arrivals}"


@dataclass(frozen=True, slots=True)
class SessionLoad:
    """A workload or a trace."""

    name: str
    sessions: Callable[[str], Sequence[Session]]
    """By the seed."""
    pace: Pace
    vocab_size: int

    async def run(self, target: Target, model: str, seed: str) -> list[Exchange]:
        """Go through the sessions."""
        return await run_sessions(target, model, self.sessions(seed), self.pace, self.vocab_size)

    def best_cached_percent(self, seed: str) -> float | None:
        """By the texts, before any is sent."""
        return best_cached_percent(self.sessions(seed))

    def __str__(self) -> str:
        return f"{self.name}, {self.pace}"


async def bench_serve(
    target: Target,
    load: Load,
    warm_up: Work,
    *,
    engine: str,
    model: str | None,
    runs: int,
    seed: int,
) -> list[Row]:
    """All rows over `runs` runs with other prompts each, after some requests as `warm_up` says.

    Raises LoadError if a request of the warm-up fails.
    """
    model = model or await target.model()
    await _warm_up(target, model, warm_up, seed)
    measured = [figures(await load.run(target, model, f"{seed}/{run}")) for run in range(runs)]
    best_cached = load.best_cached_percent(f"{seed}/0")
    return _rows(measured, best_cached, work=str(load), model=model, engine=engine)


async def _warm_up(target: Target, model: str, work: Work, seed: int) -> None:
    few = replace(work, requests=min(work.requests, _WARM_UP_REQUESTS))
    load = PromptLoad(few, ClosedLoop(few.requests))
    for exchange in await load.run(target, model, f"{seed}/warm-up"):
        if exchange.error is not None:
            raise exchange.error


def _rows(
    measured: Sequence[dict[Metric, float]],
    best_cached: float | None,
    *,
    work: str,
    model: str,
    engine: str,
) -> list[Row]:
    """One row for each metric that any run has; a kind of failure that a run lacks counts as 0."""
    metrics = dict.fromkeys(metric for run in measured for metric in run)
    return [
        Row.over(
            [run.get(metric, 0.0) for run in measured if metric in run or metric.counts_failures],
            bench="serve",
            work=work,
            model=model,
            engine=engine,
            metric=metric.name,
            unit=metric.unit,
            limit=best_cached if metric == CACHED else None,
        )
        for metric in metrics
    ]
