"""A running server under load: latencies, throughput and failures."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from ops.bench.load import Target, Work, run_load
from ops.bench.load_arrivals import Arrivals, ClosedLoop
from ops.bench.load_grpc import GrpcTarget
from ops.bench.load_openai import OpenAITarget
from ops.bench.report import Row
from ops.bench.serve_figures import Metric, figures

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


async def bench_serve(
    target: Target,
    work: Work,
    arrivals: Arrivals,
    *,
    engine: str,
    model: str | None,
    runs: int,
    seed: int,
) -> list[Row]:
    """All rows over `runs` runs with other prompts each, after a short warm-up.

    Raises LoadError if a request of the warm-up fails.
    """
    model = model or await target.model()
    await _warm_up(target, model, work, seed)
    measured = []
    for run in range(runs):
        prompts = work.prompts(f"{seed}/{run}")
        exchanges = await run_load(target, model, prompts, work.output_tokens, arrivals)
        measured.append(figures(exchanges))
    return _rows(measured, work=f"{work}, {arrivals}", model=model, engine=engine)


async def _warm_up(target: Target, model: str, work: Work, seed: int) -> None:
    few = replace(work, requests=min(work.requests, _WARM_UP_REQUESTS))
    exchanges = await run_load(
        target, model, few.prompts(f"{seed}/warm-up"), work.output_tokens, ClosedLoop(few.requests)
    )
    for exchange in exchanges:
        if exchange.error is not None:
            raise exchange.error


def _rows(
    measured: Sequence[dict[Metric, float]], *, work: str, model: str, engine: str
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
        )
        for metric in metrics
    ]
