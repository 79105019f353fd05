"""The engine offline: throughput, and the parts of a step."""

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

from cluster.settings import load_settings
from ops.bench.hardware import measure
from ops.bench.kernels import bench_kernels
from ops.bench.limits import batch_seconds, sizes
from ops.bench.report import Row
from ops.bench.single import bench_single
from ops.models import resolve
from ops.models.random_model import write_random_model
from ops.models.shapes import NAMED
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams

_STEP_BATCH = 32
_STEP_PROMPT = 256
_STEP_OUTPUT = 64
_OVERHEAD_PARTS = ("schedule", "build", "commit")


class BatchWork(NamedTuple):
    """Requests that all arrive at once, with random prompts and outputs of fixed length."""

    requests: int
    prompt_tokens: int
    output_tokens: int

    def prompts(self, vocab_size: int, seed: int) -> list[list[int]]:
        """Token ids, other ones for each seed, so that no run finds the last one's prefixes."""
        random = Random(seed)
        return [
            random.choices(range(vocab_size), k=self.prompt_tokens) for _ in range(self.requests)
        ]

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens of all requests."""
        return self.requests * (self.prompt_tokens + self.output_tokens)

    def __str__(self) -> str:
        return f"{self.requests} x ({self.prompt_tokens} + {self.output_tokens})"


def bench_engine(model: str, work: BatchWork, runs: int) -> list[Row]:
    """All rows for a model given by directory or by the name of a shape.

    The engine's settings are those of the environment, such as TRUNKLINE__ENGINE__DETERMINISTIC.

    Raises UnknownModelError if it is neither.
    """
    with TemporaryDirectory() as scratch:
        if model in NAMED:
            folder = Path(scratch) / model
            folder.mkdir()
            write_random_model(NAMED[model], folder)
        else:
            folder = resolve(model)
        llm, name = LLM(folder, load_settings().engine), Path(model).name
        return [
            *_bench_throughput(llm, folder, name, work, runs),
            *_bench_step(llm, name, runs),
            *bench_kernels(llm, name, runs),
            *bench_single(llm, name, runs),
        ]


def _bench_throughput(llm: LLM, folder: Path, model: str, work: BatchWork, runs: int) -> list[Row]:
    vocab_size = llm.engine.model.config.vocab_size
    rates = []
    for run in range(-1, runs):
        prompts = work.prompts(vocab_size, run)
        start = perf_counter()
        _generate(llm, prompts, work.output_tokens)
        if run >= 0:  # the first is a warm-up
            rates.append(work.num_tokens / (perf_counter() - start))
    size = llm.engine.model.dtype.itemsize
    least_s = batch_seconds(sizes(folder, size, size, size), *work, measure())
    return [
        Row.over(
            rates,
            bench="engine",
            work=str(work),
            model=model,
            engine="trunkline",
            metric="throughput, prompt and output",
            unit="tokens/s",
            limit=work.num_tokens / least_s,
        )
    ]


def _bench_step(llm: LLM, model: str, runs: int) -> list[Row]:
    """Milliseconds of each part of a decode step, and the share that is not model or sampling."""
    work = BatchWork(_STEP_BATCH, _STEP_PROMPT, _STEP_OUTPUT)
    parts: dict[str, list[float]] = {}
    overheads = []
    for run in range(-1, runs):
        prompts = work.prompts(llm.engine.model.config.vocab_size, 1000 + run)
        spent = _decode_parts(llm, prompts)
        if run < 0:
            continue
        for part, seconds in spent.items():
            parts.setdefault(part, []).append(seconds * 1e3)
        overhead = sum(spent[part] for part in _OVERHEAD_PARTS)
        overheads.append(100 * overhead / sum(spent.values()))
    common: dict[str, Any] = {
        "bench": "engine",
        "work": f"decode step, batch {_STEP_BATCH}",
        "model": model,
        "engine": "trunkline",
    }
    rows = [
        Row.over(values, metric=f"step: {part}", unit="ms", **common)
        for part, values in parts.items()
    ]
    return [*rows, Row.over(overheads, metric="step: overhead", unit="%", limit=10.0, **common)]


def _decode_parts(llm: LLM, prompts: list[list[int]]) -> dict[str, float]:
    """Seconds per step spent on each part while all the prompts decode."""
    generated = SamplingParams(temperature=0.0, max_tokens=_STEP_OUTPUT, ignore_eos=True)
    first = SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True)
    llm.generate(prompts, first)
    with_prefill, prefill = _parts(llm, prompts, generated), _parts(llm, prompts, first)
    return {
        part: (with_prefill[part] - prefill[part]) / (_STEP_OUTPUT - 1) for part in with_prefill
    }


def _parts(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> dict[str, float]:
    watch = llm.engine.stats.watch
    before = dict(watch.seconds)
    llm.generate(prompts, params)
    return {part: seconds - before.get(part, 0.0) for part, seconds in watch.seconds.items()}


def _generate(llm: LLM, prompts: list[list[int]], output_tokens: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    llm.generate(prompts, params)
