"""What one tenant's flood costs another one, through a whole cluster on this machine."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from cluster.redis_client import connect
from cluster.tenants import Tenant, TenantStore
from ops.bench.load import Exchange, Work, run_load
from ops.bench.load_arrivals import ClosedLoop, OpenLoop
from ops.bench.load_grpc import GrpcTarget
from ops.bench.report import Row
from ops.serve_run_file import RunFile

QUEUES = ("fair", "fcfs")
"""Under `fcfs` tenants do not matter; it shows what `fair` is for."""
GOAL = 1.5
"""Of the time to first token without the flood."""
_GOAL_PERCENTILE = 95
_PERCENTILES = (50, _GOAL_PERCENTILE)
_PLACES = 16
"""Sequences that may run: few enough that the flood takes them all."""
_MODEST_SHARE = 0.1
"""Of what the replica can do, asked for by the tenant that is measured."""
_FLOOD = 10.0
"""The other one's rate, in multiples of that; together they ask for more than there is."""
_ONSET_S = 3.0
"""Until a flood has filled the replica and the queue: the moment at which so many requests come at
once is not what is measured."""
_TIMEOUT_S = 600.0
_READY = "Ctrl-C drains"


class FairnessWork(NamedTuple):
    """Requests of the tenant that is measured; those of the flood are the same."""

    requests: int
    prompt_tokens: int
    output_tokens: int

    def prompts(self, seed: str, count: int) -> list[list[int]]:
        """Other ones for each seed."""
        work = Work(count, self.prompt_tokens, self.output_tokens)
        return work.prompts(seed)

    def __str__(self) -> str:
        return f"{self.requests} x ({self.prompt_tokens} + {self.output_tokens})"


class _Tenants(NamedTuple):
    """Clients of a cluster."""

    modest: GrpcTarget
    flood: GrpcTarget
    model: str


async def bench_fairness(
    model: str, work: FairnessWork, queues: Sequence[str], runs: int
) -> list[Row]:
    """Times to first token of a tenant that asks for a tenth of what one replica can do: alone, and
    while another asks for as much as there is, which is ten times that; under each queue.

    Raises LoadError if a request of the measured tenant fails, ValueError for a queue that is none,
    RuntimeError if the cluster does not start.
    """
    if wrong := set(queues) - set(QUEUES):
        raise ValueError(f"queues: got {', '.join(sorted(wrong))}, expected some of {QUEUES}")
    rows = []
    for queue in queues:
        with _serving(model, queue) as run:
            rows += await _measure(run, queue, work, runs)
    return rows


async def _measure(run: RunFile, queue: str, work: FairnessWork, runs: int) -> list[Row]:
    async with connect(run.redis_url) as redis:
        store = TenantStore(redis, run.namespace)
        modest, flood = [await _target(store, run, name) for name in ("modest", "flood")]
    tenants = _Tenants(modest, flood, await modest.model())
    alone: list[list[float]] = []
    beside: list[list[float]] = []
    try:
        await _capacity(tenants, work, "warm-up", _PLACES)
        rate = _MODEST_SHARE * await _capacity(tenants, work, "capacity", 4 * _PLACES)
        for number in range(runs):
            alone.append(_ttft_ms(await _ask(tenants, work, rate, f"alone {number}")))
            beside.append(_ttft_ms(await _beside_flood(tenants, work, rate, number)))
    finally:
        await modest.close()
        await flood.close()
    return _rows(tenants.model, queue, work, alone, beside)


def _rows(
    model: str,
    queue: str,
    work: FairnessWork,
    alone: Sequence[Sequence[float]],
    beside: Sequence[Sequence[float]],
) -> list[Row]:
    """`alone` and `beside` are the times of each run."""
    figures: dict[str, tuple[list[float], str]] = {}
    for percentile in _PERCENTILES:
        before, flooded = (
            [float(np.percentile(run, percentile)) for run in runs] for runs in (alone, beside)
        )
        shares = [after / without for after, without in zip(flooded, before, strict=True)]
        figures[f"TTFT p{percentile} alone"] = before, "ms"
        figures[f"TTFT p{percentile} beside a flood"] = flooded, "ms"
        goal = f", goal {GOAL:g}" if percentile == _GOAL_PERCENTILE else ""
        figures[f"of that alone (p{percentile}{goal})"] = shares, "x"
    return [
        Row.over(
            values,
            bench="fairness",
            work=str(work),
            model=model,
            engine=f"queue {queue}",
            metric=metric,
            unit=unit,
        )
        for metric, (values, unit) in figures.items()
    ]


async def _capacity(tenants: _Tenants, work: FairnessWork, seed: str, requests: int) -> float:
    """Requests/s that the replica can do with all its places taken."""
    prompts = work.prompts(seed, requests)
    loop = ClosedLoop(2 * _PLACES)
    exchanges = await run_load(tenants.flood, tenants.model, prompts, work.output_tokens, loop)
    _check(exchanges)
    began_s = min(exchange.sent_s for exchange in exchanges)
    return len(exchanges) / (max(exchange.ended_s for exchange in exchanges) - began_s)


async def _ask(tenants: _Tenants, work: FairnessWork, rate: float, seed: str) -> list[Exchange]:
    """What the measured tenant asks for."""
    prompts = work.prompts(seed, work.requests)
    loop = OpenLoop(rate, 0)
    return await run_load(tenants.modest, tenants.model, prompts, work.output_tokens, loop)


async def _beside_flood(
    tenants: _Tenants, work: FairnessWork, rate: float, number: int
) -> list[Exchange]:
    """The same while the other tenant has more waiting than the replica has places."""
    loop = OpenLoop(_FLOOD * rate, 1)
    # More than come meanwhile: the flood outlasts what is measured, and is broken off.
    backlog = work.prompts(f"backlog {number}", 4 * _PLACES)
    stream = work.prompts(f"flood {number}", int(4 * _FLOOD * (work.requests + _ONSET_S * rate)))
    backlogged = ClosedLoop(len(backlog))
    output = work.output_tokens
    floods = [
        asyncio.create_task(run_load(tenants.flood, tenants.model, backlog, output, backlogged)),
        asyncio.create_task(run_load(tenants.flood, tenants.model, stream, output, loop)),
    ]
    try:
        await asyncio.sleep(_ONSET_S)
        return await _ask(tenants, work, rate, f"beside {number}")
    finally:
        for flood in floods:
            flood.cancel()
        await asyncio.gather(*floods, return_exceptions=True)


def _ttft_ms(exchanges: Sequence[Exchange]) -> list[float]:
    _check(exchanges)
    return [1e3 * (exchange.arrivals_s[0] - exchange.sent_s) for exchange in exchanges]


def _check(exchanges: Sequence[Exchange]) -> None:
    for exchange in exchanges:
        if exchange.error is not None:
            raise exchange.error


async def _target(store: TenantStore, run: RunFile, name: str) -> GrpcTarget:
    tenant = Tenant(name=name)
    await store.add(tenant)
    key = str(await store.add_key(tenant))
    return GrpcTarget(run.grpc_address, api_key=key, timeout_s=_TIMEOUT_S)


@contextmanager
def _serving(model: str, queue: str) -> Iterator[RunFile]:
    """A cluster of one replica that asks for keys."""
    with TemporaryDirectory(prefix="fair-") as name:
        directory = Path(name)
        config = directory / "settings.yaml"
        settings = {
            "router": {"queue": queue, "require_api_key": True, "max_queued": 100_000},
            "engine": {"max_num_seqs": _PLACES},
        }
        config.write_text(json.dumps(settings))  # JSON is YAML
        serve = ("-c", "from ops.cli import main; main()", "serve", model, "--config", str(config))
        ports = ("--grpc-port", "0", "--http-port", "0")
        process = subprocess.Popen(
            [sys.executable, *serve, *ports],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"XDG_RUNTIME_DIR": name, "TMPDIR": name},
        )
        try:
            assert process.stdout is not None, "it was asked for"
            if not any(_READY in line for line in process.stdout):
                raise RuntimeError(f"trunkline serve ended with {process.wait()}")
            [path] = directory.glob(f"trunkline-{os.getuid()}/*.json")
            yield RunFile.model_validate_json(path.read_text(encoding="utf-8"))
        finally:
            process.terminate()
            process.wait()
