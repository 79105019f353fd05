"""Sampling: what a step's draws cost by the kernels and in torch, beside reading the logits."""

from collections.abc import Sequence as Rows
from time import perf_counter
from typing import Any, NamedTuple

import torch

from ops.bench.hardware import measure
from ops.bench.report import Row
from workers.engine.cpus import usable_cpus
from workers.engine.request import Request
from workers.engine.sampler import Sampler
from workers.engine.sampling_params import SamplingParams
from workers.engine.sequence import RequestGroup, Sequence, Target
from workers.kernels.cpu_sampling import CpuSampling
from workers.kernels.library import load_library

WISHES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top_k": {"temperature": 0.7, "top_k": 50},
    "top_p": {"temperature": 0.7, "top_p": 0.9},
    "min_p": {"temperature": 0.7, "min_p": 0.05},
    "penalties": {"temperature": 0.0, "repetition_penalty": 1.1, "frequency_penalty": 0.5},
}
"""Parameters of all requests of a batch, by what to call them."""

_PROMPT_TOKENS = 256
_REPEATS = 5
_SPREAD = 3.0
"""Standard deviation of the logits; with models' sharper ones, kernels skip more of the noise."""


class SamplingWork(NamedTuple):
    """Rows of random logits, float32."""

    vocabulary: int
    batch: int

    def __str__(self) -> str:
        return f"{self.batch} x {self.vocabulary}"


def bench_sampling(works: Rows[SamplingWork], runs: int) -> list[Row]:
    """Milliseconds for each batch's tokens, by each of WISHES."""
    bandwidth = measure().read_bytes_per_s
    samplers = {"torch": Sampler(())}
    library = load_library()
    if library is not None:
        library.set_num_threads(usable_cpus())
        samplers["kernels"] = Sampler((), CpuSampling(library))
    rows = []
    for work in works:
        logits = torch.randn(work.batch, work.vocabulary) * _SPREAD
        limit_ms = 1e3 * logits.nbytes / bandwidth
        for name, wish in WISHES.items():
            targets = [_target(SamplingParams(seed=seed, **wish)) for seed in range(work.batch)]
            for engine, milliseconds in _in_turn(samplers, logits, targets, runs).items():
                rows.append(
                    Row.over(
                        milliseconds,
                        bench="sampling",
                        work=str(work),
                        model="",
                        engine=engine,
                        metric=name,
                        unit="ms",
                        limit=limit_ms,
                    )
                )
    return rows


def _in_turn(
    samplers: dict[str, Sampler], logits: torch.Tensor, targets: list[Target], runs: int
) -> dict[str, list[float]]:
    """Each sampler's milliseconds in each run: the best of some repeats."""
    found: dict[str, list[float]] = {name: [] for name in samplers}
    for _ in range(runs):
        for name, sampler in samplers.items():
            found[name].append(
                min(_milliseconds(sampler, logits, targets) for _ in range(_REPEATS))
            )
    return found


@torch.inference_mode()
def _milliseconds(sampler: Sampler, logits: torch.Tensor, targets: list[Target]) -> float:
    logits = logits.clone()  # as a model leaves them: written just now
    start = perf_counter()
    sampler.sample(logits, targets)
    return 1e3 * (perf_counter() - start)


def _target(params: SamplingParams) -> Target:
    request = Request("bench", list(range(_PROMPT_TOKENS)), params)
    group = RequestGroup(request, 0, 0.0, max_output=1, root_hash=b"")
    return Sequence(group, 0), 0
