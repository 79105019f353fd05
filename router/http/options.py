"""From the fields of a body to the contract's options."""

from trunkline.v1 import inference_pb2 as pb
from trunkline.v1 import sampling_pb2

from cluster.errors import invalid
from router.http.generation_body import GenerationBody
from router.http.own_headers import OwnHeaders


def request_options(
    body: GenerationBody,
    headers: OwnHeaders,
    *,
    request_id: str,
    max_tokens: int | None,
    top_logprobs: int | None,
    prompt_logprobs: int | None,
) -> pb.RequestOptions:
    """The options that a body and our own headers ask for.

    Raises RequestError if its fields contradict each other.
    """
    if body.stream_options is not None and not body.stream:
        raise invalid("stream_options", "an object", "null, unless stream is true")
    if body.prompt_logprobs is not None and body.stream:
        raise invalid("prompt_logprobs", body.prompt_logprobs, "null if stream is true")
    options = pb.RequestOptions(
        request_id=request_id,
        sampling=_sampling(body),
        stop=_stop(body, max_tokens),
        logprobs=sampling_pb2.LogprobsOptions(
            top_logprobs=top_logprobs, prompt_top_logprobs=prompt_logprobs
        ),
        n=body.n or 1,
        priority=body.priority or 0,
        metadata=_labels(body),
        session_id=headers.session_id,
        no_response_cache=headers.no_response_cache,
    )
    if body.timeout_s is not None:
        options.timeout.FromNanoseconds(max(1, int(body.timeout_s * 1e9)))
    return options


def _sampling(body: GenerationBody) -> sampling_pb2.SamplingParams:
    return sampling_pb2.SamplingParams(
        temperature=body.temperature,
        top_k=None if body.top_k is None else max(0, body.top_k),
        top_p=body.top_p,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        logit_bias=body.logit_bias or {},
        allowed_token_ids=body.allowed_token_ids or (),
        # OpenAI's seeds are signed; the same 64 bits are another, equally good seed.
        seed=None if body.seed is None else body.seed % 2**64,
    )


def _stop(body: GenerationBody, max_tokens: int | None) -> sampling_pb2.StopConditions:
    stop_strings = [body.stop] if isinstance(body.stop, str) else body.stop or ()
    return sampling_pb2.StopConditions(
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        stop_strings=stop_strings,
        stop_token_ids=body.stop_token_ids or (),
        ignore_eos=bool(body.ignore_eos),
    )


def _labels(body: GenerationBody) -> dict[str, str]:
    labels = dict(body.metadata or {})
    if body.user is not None:
        labels.setdefault("user", body.user)
    return labels
