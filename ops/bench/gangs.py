"""What ranks gain and cost: an engine of two ranks beside one of one rank, on the same cores."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter

import torch

from cluster.settings import EngineSettings, ParallelSettings
from ops.bench.report import Row
from ops.models.random_model import write_random_model
from ops.models.shapes import NAMED
from workers.engine.cpus import usable_cpus
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams
from workers.kernels.library import load_library
from workers.parallel.layout import ParallelLayout

_CACHE_BYTES = 512 * 1024**2
_DECODE_PROMPT, _DECODE_OUTPUT = 32, 64
_REQUESTS, _PROMPT, _OUTPUT = 96, 32, 64
"""Enough that half of them, as each stage has at a time, still make large products."""

Layouts = dict[str, ParallelSettings]


def bench_tensor(model: str, runs: int) -> list[Row]:
    """Decode of one sequence, tokens/s, by one rank on all cores and by two of half as many."""
    layouts = {"1 rank": ParallelSettings(), "tensor 2": ParallelSettings(tensor=2)}
    work = f"1 x ({_DECODE_PROMPT} + {_DECODE_OUTPUT})"
    return _beside(model, layouts, _decode_rate, runs, metric="decode", work=work)


def bench_pipeline(model: str, runs: int) -> list[Row]:
    """Throughput of many sequences, prompt and output tokens/s, by one rank and by two stages."""
    layouts = {"1 rank": ParallelSettings(), "pipeline 2": ParallelSettings(pipeline=2)}
    work = f"{_REQUESTS} x ({_PROMPT} + {_OUTPUT})"
    return _beside(model, layouts, _throughput, runs, metric="throughput", work=work)


def _beside(
    model: str,
    layouts: Layouts,
    measure: Callable[[LLM, int], float],
    runs: int,
    *,
    metric: str,
    work: str,
) -> list[Row]:
    """The rows of engines that take turns within each run, after a run to warm up."""
    with TemporaryDirectory() as scratch, ExitStack() as opened:
        folder = Path(scratch)
        write_random_model(NAMED[model], folder)
        engines = {
            name: opened.enter_context(LLM(folder, _settings(layout)))
            for name, layout in layouts.items()
        }
        values: dict[str, list[float]] = {name: [] for name in engines}
        for run in range(-1, runs):
            for name, llm in engines.items():
                _use_cores(layouts[name])
                rate = measure(llm, run)
                if run >= 0:
                    values[name].append(rate)
    return [
        Row.over(
            rates,
            bench="parallel",
            work=work,
            model=model,
            engine=name,
            metric=metric,
            unit="tokens/s",
        )
        for name, rates in values.items()
    ]


def _use_cores(layout: ParallelSettings) -> None:
    """Give this process, which has a rank of every engine, the threads of that layout's ranks.

    Threads are the process's, and the engine made last has set their number.
    """
    library = load_library()
    num_threads = max(1, usable_cpus() // ParallelLayout(**layout.model_dump()).world_size)
    if library is not None:
        library.set_num_threads(num_threads)
    else:
        torch.set_num_threads(num_threads)


def _settings(layout: ParallelSettings) -> EngineSettings:
    return EngineSettings(parallel=layout, kv_cache_bytes=_CACHE_BYTES, enable_prefix_caching=False)


def _decode_rate(llm: LLM, run: int) -> float:
    first_s = _seconds(llm, 1, _DECODE_PROMPT, 1, run)
    return (_DECODE_OUTPUT - 1) / (_seconds(llm, 1, _DECODE_PROMPT, _DECODE_OUTPUT, run) - first_s)


def _throughput(llm: LLM, run: int) -> float:
    return _REQUESTS * (_PROMPT + _OUTPUT) / _seconds(llm, _REQUESTS, _PROMPT, _OUTPUT, run)


def _seconds(llm: LLM, requests: int, prompt: int, output: int, run: int) -> float:
    random = Random(run)
    vocabulary = range(llm.engine.model.config.vocab_size)
    prompts = [random.choices(vocabulary, k=prompt) for _ in range(requests)]
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
    start = perf_counter()
    llm.generate(prompts, params)
    return perf_counter() - start
