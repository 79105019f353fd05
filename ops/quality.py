"""`trunkline quality`: what quantization changes in a model's answers."""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from cluster.settings import EngineSettings
from ops.bench.report import Row
from ops.failure import CommandError, UsageError
from ops.models import HELD_OUT, resolve
from ops.quality_divergence import Divergence
from ops.quality_logits import LogitReader
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams

WINDOW_TOKENS = 512
"""Tokens of context that a prediction has at the most."""
MAX_TOKENS = 16 * WINDOW_TOKENS
"""Of the text that is read: enough for the perplexity to settle."""
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 32
"""Of each continuation."""
CACHE_BYTES = 2**28
"""For continuations, all of them at a time."""

Figure = tuple[str, str, float]
"""Metric, unit and value."""


def quality(
    model: str,
    *,
    quantization: str | None,
    kv_cache_dtype: str | None,
    text: Path | None,
    max_perplexity_change: float | None,
) -> tuple[list[Row], str | None]:
    """Compare a model as it is stored with the same one quantized, both in memory at once.

    Args:
        model: Directory of a model, or a shipped one's name.
        quantization: engine.quantization of the second; None for none.
        kv_cache_dtype: engine.kv_cache_dtype of the second; None for auto.
        text: What both read; by default text that the shipped models have not seen.
        max_perplexity_change: Percent by which the perplexities may differ.

    Returns:
        The figures, and what exceeds the limit, if something does.

    Raises UsageError for what cannot be taken, CommandError if a model cannot be loaded.
    """
    wanted = {"quantization": quantization, "kv_cache_dtype": kv_cache_dtype}
    changes = {name: value for name, value in wanted.items() if value is not None}
    as_stored, as_wanted = _settings({}), _settings(changes)
    ids = _token_ids(model, text)
    original, changed = _llm(model, as_stored), _llm(model, as_wanted)
    length = min(WINDOW_TOKENS, original.engine.max_model_len)
    readers = (
        LogitReader(original.engine.model, as_stored, length),
        LogitReader(changed.engine.model, as_wanted, length),
    )
    seen = _divergence(readers, ids, length)
    figures = [
        *_figures(seen),
        ("greedy continuation", "share equal", _same(original, changed, ids)),
    ]
    figures += _sizes(original, changed)
    rows = [
        Row.over(
            [value],
            bench="quality",
            work=f"{len(ids)} tokens",
            model=model,
            engine=", ".join(f"{name} {value}" for name, value in changes.items()) or "as stored",
            metric=metric,
            unit=unit,
        )
        for metric, unit, value in figures
    ]
    return rows, _excess(seen.perplexity_change, max_perplexity_change)


def _settings(changes: dict[str, str]) -> EngineSettings:
    try:
        return EngineSettings.model_validate({"kv_cache_bytes": CACHE_BYTES, **changes})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(("engine", *map(str, first["loc"])))
        raise UsageError(f"{field}: got {first['input']!r}: {first['msg']}") from error


def _llm(model: str, settings: EngineSettings) -> LLM:
    try:
        return LLM(resolve(model), settings)
    except ValueError as error:
        raise CommandError(" ".join(str(error).split())) from error


def _token_ids(model: str, text: Path | None) -> list[int]:
    try:
        tokenizer = Tokenizer.from_file(str(resolve(model) / "tokenizer.json"))
        content = (text or HELD_OUT).read_text(encoding="utf-8")
    except Exception as error:  # tokenizers raises no narrower type
        raise UsageError(" ".join(str(error).split())) from error
    ids: list[int] = tokenizer.encode(content).ids[:MAX_TOKENS]
    if len(ids) < 2:
        raise UsageError(f"--text: {text} has {len(ids)} tokens, expected at least 2")
    return ids


def _divergence(
    readers: tuple[LogitReader, LogitReader], ids: Sequence[int], length: int
) -> Divergence:
    seen = Divergence()
    for start in range(0, len(ids), length):
        window = ids[start : start + length]
        following, done = torch.tensor(window[1:]), 0
        for first, second in zip(*(reader.read(window) for reader in readers), strict=True):
            seen.add(first.cpu(), second.cpu(), following[done : done + len(first)])
            done += len(first)
    return seen


def _same(original: LLM, changed: LLM, ids: Sequence[int]) -> float:
    """The share of equal tokens where both continue the beginnings of the text's windows."""
    prompts = [ids[start : start + PROMPT_TOKENS] for start in range(0, len(ids), WINDOW_TOKENS)]
    params = SamplingParams(temperature=0.0, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    equal = [
        one == other
        for first, second in zip(
            original.generate(prompts, params), changed.generate(prompts, params), strict=True
        )
        for one, other in zip(first.samples[0].token_ids, second.samples[0].token_ids, strict=True)
    ]
    return sum(equal) / len(equal)


def _figures(seen: Divergence) -> list[Figure]:
    before, after = seen.perplexities
    return [
        ("KL divergence", "nats/token", seen.kl_sum / seen.positions),
        ("mean logit difference", "", seen.logit_sum / seen.positions),
        ("largest logit difference", "", seen.logit_max),
        ("perplexity as stored", "", before),
        ("perplexity quantized", "", after),
        ("perplexity change", "%", seen.perplexity_change),
        ("greedy next token", "share equal", seen.same_argmax / seen.positions),
    ]


def _sizes(original: LLM, changed: LLM) -> list[Figure]:
    before, after = (llm.engine.model.weight_bytes for llm in (original, changed))
    return [
        ("weights as stored", "MB", before / 1e6),
        ("weights quantized", "MB", after / 1e6),
        ("weights ratio", "", after / before),
    ]


def _excess(change: float, limit: float | None) -> str | None:
    if limit is None or abs(change) <= limit:
        return None
    return f"perplexity changes by {change:.3g} %, expected at most {limit:g} %"
