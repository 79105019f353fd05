"""Where the time of a step goes, kernel by kernel."""

from collections import defaultdict
from random import Random

from ops.bench.report import Row
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams

_PROMPT_TOKENS = 256
_STEPS = ((1, _PROMPT_TOKENS, 2), (32, _PROMPT_TOKENS, 2), (64, _PROMPT_TOKENS, 2), (1, 1024, 1))
"""Requests, tokens of each prompt, and tokens to generate: the last step is the one measured."""


def bench_kernels(llm: LLM, model: str, runs: int) -> list[Row]:
    """Milliseconds that a step spends in each kernel, the head and sampling left out.

    No rows where steps are not recorded.
    """
    rows = []
    for requests, prompt_tokens, output_tokens in _STEPS:
        work = f"decode step, batch {requests}" if output_tokens > 1 else f"prompt {prompt_tokens}"
        _run(llm, requests, prompt_tokens, output_tokens)
        totals = [_milliseconds(llm) for _ in range(runs)]
        rows += [
            Row.over(
                [total[kernel] for total in totals],
                bench="engine",
                work=f"kernels of a step: {work}",
                model=model,
                engine="trunkline",
                metric=kernel,
                unit="ms",
            )
            for kernel in totals[0]
        ]
    return rows


def _run(llm: LLM, requests: int, prompt_tokens: int, output_tokens: int) -> None:
    random, vocabulary = Random(prompt_tokens), range(llm.engine.model.config.vocab_size)
    prompts = [random.choices(vocabulary, k=prompt_tokens) for _ in range(requests)]
    # The prompts are in the cache before the last tokens are asked for, so that all of these are
    # computed in the same step.
    for max_tokens in range(1, output_tokens + 1):
        llm.generate(
            prompts, SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        )


def _milliseconds(llm: LLM) -> dict[str, float]:
    total: dict[str, float] = defaultdict(float)
    for kernel, seconds in llm.engine.kernel_seconds():
        total[kernel] += seconds * 1e3
    return total
