"""One request at a time: the first token, cold and on a prefix hit, and the pace after it."""

from random import Random
from time import perf_counter
from typing import Any

from ops.bench.report import Row
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams

_PROMPT_TOKENS = 1024
_OUTPUT_TOKENS = 64


def bench_single(llm: LLM, model: str, runs: int) -> list[Row]:
    """Rows for prompts of 1,024 random tokens, asked twice: the second finds the first one's KV."""
    random = Random(0)
    vocabulary = range(llm.engine.model.config.vocab_size)
    cold, hit, pace = [], [], []
    for run in range(-1, runs):
        prompt = random.choices(vocabulary, k=_PROMPT_TOKENS)
        cold_s, hit_s = _seconds(llm, prompt, 1), _seconds(llm, prompt, 1)
        decode_s = _seconds(llm, prompt, _OUTPUT_TOKENS) - hit_s
        if run >= 0:  # the first is a warm-up
            cold.append(cold_s * 1e3)
            hit.append(hit_s * 1e3)
            pace.append((_OUTPUT_TOKENS - 1) / decode_s)
    common: dict[str, Any] = {
        "bench": "engine",
        "work": f"1 x ({_PROMPT_TOKENS} + {_OUTPUT_TOKENS})",
        "model": model,
        "engine": "trunkline",
    }
    return [
        Row.over(cold, metric="first token, cold", unit="ms", **common),
        Row.over(hit, metric="first token, prefix hit", unit="ms", **common),
        Row.over(pace, metric="decode", unit="tokens/s", **common),
    ]


def _seconds(llm: LLM, prompt: list[int], output_tokens: int) -> float:
    start = perf_counter()
    params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
    llm.generate([prompt], params)
    return perf_counter() - start
