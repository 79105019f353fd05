"""What answers of both kinds of completion consist of."""

from collections.abc import Mapping, Sequence
from typing import Any

from trunkline.v1 import inference_pb2 as pb

_FINISH_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}
_GOES_ON: Mapping[str, None] = {"finish_reason": None, "stop_reason": None}

_CACHE_SOURCES = {pb.CACHE_SOURCE_EXACT: "exact", pb.CACHE_SOURCE_SEMANTIC: "semantic"}


def ending(delta: pb.Delta) -> Mapping[str, Any]:
    """Why a choice has ended; `stop_reason` is the stop string or token id, as in vLLM."""
    if not delta.finish_reason:
        return _GOES_ON
    stopped_by = delta.WhichOneof("stopped_by")
    return {
        "finish_reason": _FINISH_REASONS.get(delta.finish_reason),
        "stop_reason": None if stopped_by is None else getattr(delta, stopped_by),
    }


def adds_something(delta: pb.Delta) -> bool:
    """Whether a delta is worth an event; text that is held back leaves some empty."""
    return bool(delta.text or delta.logprobs or delta.finish_reason)


def usage_content(usage: pb.Usage) -> dict[str, Any]:
    """Token counts as OpenAI names them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_prompt_tokens},
    }


def cache_content(sources: Sequence[pb.CacheSource.ValueType]) -> dict[str, Any]:
    """Where the answers to a body's prompts come from, if no replica has made any of them.

    OpenAI's answers have no such field.
    """
    if len(set(sources)) == 1 and (source := _CACHE_SOURCES.get(sources[0])):
        return {"cache_source": source}
    return {}
