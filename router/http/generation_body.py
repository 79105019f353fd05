"""What the bodies of both kinds of completion have in common."""

from typing import Annotated, Literal

from pydantic import Field

from router.http.fields import Accepts, Body, Ignored, Many, TokenId, Uint32

StopField = Annotated[str | Many[str] | None, Accepts("a string, a list of strings or null")]


class StreamOptions(Body):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: Ignored = None


class GenerationBody(Body):
    """OpenAI's parameters, and beside them those that users of vLLM know."""

    model: str = ""
    """May be left out when the cluster serves one model."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    max_tokens: Uint32 | None = None
    stop: StopField = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**64 - 1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[TokenId, float] | None = None
    user: Annotated[str, Field(max_length=256)] | None = None
    metadata: dict[str, str] | None = None

    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    """-1 and 0 keep all tokens."""
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Uint32 | None = None
    stop_token_ids: Many[TokenId] | None = None
    ignore_eos: bool | None = None
    allowed_token_ids: Many[TokenId] | None = None
    prompt_logprobs: Uint32 | None = None
    """Log-probabilities of the prompt's tokens and of this many likeliest ones."""
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    """Higher is served first."""
    timeout_s: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Ends the request with status 504 when it passes."""

    store: Annotated[Literal[False] | None, Accepts("false, as nothing is stored")] = None
    service_tier: Annotated[Literal["auto", "default"] | None, Accepts('"auto" or "default"')] = (
        None
    )
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_options: Ignored = None
    prompt_cache_retention: Ignored = None
