"""A stream of replies gathered for an answer in one piece."""

from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import NamedTuple

from trunkline.v1 import inference_pb2 as pb

from router.http.replies import Reply


class Choice(NamedTuple):
    """All or a part of one sample of one prompt."""

    prompt: int
    delta: pb.Delta


@dataclass
class Whole:
    """What all replies add up to."""

    model: str = ""
    choices: list[Choice] = field(default_factory=list)
    """In the order of prompts and of their samples."""
    prompt_logprobs: dict[int, list[pb.TokenLogprob]] = field(default_factory=dict)
    """By prompt."""
    usage: pb.Usage = field(default_factory=pb.Usage)
    cache_sources: list[pb.CacheSource.ValueType] = field(default_factory=list)
    """Of each prompt's answer."""


async def gather(replies: AsyncGenerator[Reply, None]) -> Whole:
    """Waits for the end of `replies`. Raises RequestError when they do."""
    whole = Whole()
    deltas: dict[tuple[int, int], pb.Delta] = defaultdict(pb.Delta)
    texts: dict[tuple[int, int], list[str]] = defaultdict(list)
    async with aclosing(replies):
        async for prompt, message in replies:
            whole.model = message.model
            if message.prompt_logprobs:
                whole.prompt_logprobs[prompt] = list(message.prompt_logprobs)
            if message.HasField("delta"):
                deltas[prompt, message.delta.index].MergeFrom(message.delta)
                texts[prompt, message.delta.index].append(message.delta.text)
            else:
                add_usage(whole.usage, message.usage)
                whole.cache_sources.append(message.cache_source)
    for (prompt, sample), delta in sorted(deltas.items(), key=lambda item: item[0]):
        delta.text = "".join(texts[prompt, sample])
        whole.choices.append(Choice(prompt, delta))
    return whole


def add_usage(total: pb.Usage, usage: pb.Usage) -> None:
    """Adds the usage of one prompt to that of all."""
    total.prompt_tokens += usage.prompt_tokens
    total.completion_tokens += usage.completion_tokens
    total.cached_prompt_tokens += usage.cached_prompt_tokens
