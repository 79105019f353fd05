"""The engine offline: throughput beside Hugging Face `generate`, and the parts of a step."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import torch

from ops.bench.hardware import Hardware, measure
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

    Raises UnknownModelError if it is neither.
    """
    with TemporaryDirectory() as scratch:
        if model in NAMED:
            folder = Path(scratch) / model
            folder.mkdir()
            write_random_model(NAMED[model], folder)
        else:
            folder = resolve(model)
        llm, name = LLM(folder), Path(model).name
        return [
            *_bench_throughput(llm, folder, name, work, runs),
            *_bench_step(llm, name, runs),
            *bench_single(llm, name, runs),
        ]


def _bench_throughput(llm: LLM, folder: Path, model: str, work: BatchWork, runs: int) -> list[Row]:
    """Engines in turn within each run, so that a drift of the machine's speed meets them alike."""
    engines: dict[str, Callable[[list[list[int]]], None]] = {
        "trunkline": lambda prompts: _generate(llm, prompts, work.output_tokens)
    }
    reference = _load_transformers(folder)
    if reference is not None:
        engines["transformers generate"] = lambda prompts: _generate_transformers(
            reference, prompts, work.output_tokens
        )
    vocab_size = llm.engine.model.config.vocab_size
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for run in range(-1, runs):
        prompts = work.prompts(vocab_size, run)
        for name, generate in engines.items():
            start = perf_counter()
            generate(prompts)
            if run >= 0:  # the first is a warm-up
                seconds[name].append(perf_counter() - start)
    dtype = llm.engine.model.dtype
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors")) // dtype.itemsize
    limit = work.num_tokens / _least_seconds(llm, weights, work, measure(dtype))
    rows = [
        Row.over(
            [work.num_tokens / s for s in times],
            bench="engine",
            work=str(work),
            model=model,
            engine=name,
            metric="throughput, prompt and output",
            unit="tokens/s",
            limit=limit,
        )
        for name, times in seconds.items()
    ]
    if reference is not None:
        ratios = [theirs / ours for ours, theirs in zip(*seconds.values(), strict=True)]
        rows.append(
            Row.over(
                ratios,
                bench="engine",
                work=str(work),
                model=model,
                engine="trunkline",
                metric="throughput over transformers generate",
                unit="x",
            )
        )
    return rows


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


def _least_seconds(llm: LLM, num_weights: int, work: BatchWork, hardware: Hardware) -> float:
    """The time below which the work cannot be done: operations over peak, or bytes over bandwidth.

    Prompt tokens pass the layers once (the head only for the last), outputs pass both; each decode
    step reads all weights and the KV of all sequences.
    """
    model = llm.engine.model
    config = model.config
    head = config.vocab_size * config.hidden_size
    layers = num_weights - head * (1 if config.tie_word_embeddings else 2)
    rows = work.requests
    prefill_flop = 2 * layers * rows * work.prompt_tokens + 2 * head * rows
    step_flop = 2 * (layers + head) * rows
    kv_token = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    kv = kv_token * rows * (work.prompt_tokens + work.output_tokens / 2)
    step_bytes = (layers + head + kv) * model.dtype.itemsize
    step_s = max(step_flop / hardware.gemm_flop_per_s, step_bytes / hardware.read_bytes_per_s)
    return prefill_flop / hardware.gemm_flop_per_s + (work.output_tokens - 1) * step_s


def _generate(llm: LLM, prompts: list[list[int]], output_tokens: int) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    llm.generate(prompts, params)


def _load_transformers(folder: Path) -> Any:
    """The peer, or None where it is not installed."""
    try:
        from transformers import AutoModelForCausalLM
    except ImportError:
        return None
    return AutoModelForCausalLM.from_pretrained(folder, dtype="auto")


@torch.inference_mode()
def _generate_transformers(model: Any, prompts: list[list[int]], output_tokens: int) -> None:
    ids = torch.tensor(prompts)
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=output_tokens,
        min_new_tokens=output_tokens,
        do_sample=False,
        pad_token_id=0,
    )
