"""What every engine is asked to do. Prompts are random token ids, other ones for each sample."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import TypeAlias

from ops.bench.hardware import Hardware
from ops.bench.limits import Sizes, batch_seconds, prefill_seconds, step_seconds
from ops.bench.peers.process import Answer

Ask: TypeAlias = Callable[[list[list[int]], int], Answer]
"""Generates that many tokens after each prompt."""
Draw: TypeAlias = Callable[[int, int], list[list[int]]]
"""So many prompts of so many tokens, never seen before."""

DECODE_PROMPT = 32
DECODE_OUTPUT = 128
PROMPT = 1024
BATCH = 64
BATCH_PROMPT = 256
BATCH_OUTPUT = 128


@dataclass(frozen=True, slots=True)
class Work:
    """Something to do for an engine that has been loaded, and what its figure means."""

    name: str
    description: str
    metric: str
    unit: str
    more_is_better: bool
    measure: Callable[[Ask, Draw], float]
    limit: Callable[[Sizes, Hardware], float]
    """The best figure that the hardware allows."""
    multiplies: bool = False
    """Whether the limit is one of operations, for which only the peak of floats is known."""
    needs_prefix_caching: bool = False


def draw_from(vocab_size: int, seed: str) -> Draw:
    """Prompts that depend on the seed alone."""
    random = Random(seed)
    ids = range(vocab_size)
    return lambda count, tokens: [random.choices(ids, k=tokens) for _ in range(count)]


def _decode(ask: Ask, draw: Draw) -> float:
    answer = ask(draw(1, DECODE_PROMPT), DECODE_OUTPUT)
    first_s = answer.first_s
    if first_s is None:
        first_s = ask(draw(1, DECODE_PROMPT), 1).seconds
    return (DECODE_OUTPUT - 1) / (answer.seconds - first_s)


def _prefill(ask: Ask, draw: Draw) -> float:
    return PROMPT / ask(draw(1, PROMPT), 1).seconds


def _prefix_hit(ask: Ask, draw: Draw) -> float:
    [prompt] = draw(1, PROMPT)
    ask([prompt], 1)
    [[other]] = draw(1, 1)
    return ask([[*prompt[:-1], other]], 1).seconds * 1e3


def _batch(ask: Ask, draw: Draw) -> float:
    answer = ask(draw(BATCH, BATCH_PROMPT), BATCH_OUTPUT)
    return BATCH * (BATCH_PROMPT + BATCH_OUTPUT) / answer.seconds


WORKS = (
    Work(
        name="decode",
        description=f"decode: 1 x ({DECODE_PROMPT} + {DECODE_OUTPUT})",
        metric="decode",
        unit="tokens/s",
        more_is_better=True,
        measure=_decode,
        limit=lambda model, hardware: (
            1 / step_seconds(model, 1, DECODE_PROMPT + DECODE_OUTPUT / 2, hardware)
        ),
    ),
    Work(
        name="prefill",
        description=f"prefill: 1 x ({PROMPT} + 1)",
        metric="prefill",
        unit="tokens/s",
        more_is_better=True,
        measure=_prefill,
        limit=lambda model, hardware: PROMPT / prefill_seconds(model, 1, PROMPT, hardware),
        multiplies=True,
    ),
    Work(
        name="prefix_hit",
        description=f"prefix hit: 1 x ({PROMPT} + 1), all but the last token seen before",
        metric="first token",
        unit="ms",
        more_is_better=False,
        measure=_prefix_hit,
        limit=lambda model, hardware: 1e3 * step_seconds(model, 1, PROMPT, hardware),
        needs_prefix_caching=True,
    ),
    Work(
        name="batch",
        description=f"batch: {BATCH} x ({BATCH_PROMPT} + {BATCH_OUTPUT})",
        metric="throughput, prompt and output",
        unit="tokens/s",
        more_is_better=True,
        measure=_batch,
        limit=lambda model, hardware: (
            BATCH
            * (BATCH_PROMPT + BATCH_OUTPUT)
            / batch_seconds(model, BATCH, BATCH_PROMPT, BATCH_OUTPUT, hardware)
        ),
        multiplies=True,
    ),
)
"""For loaded engines; `start` and `rss` are of the loading itself."""
