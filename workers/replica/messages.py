"""Between the wire's messages and the engine's data."""

from time import monotonic
from typing import Any

from google.protobuf.message import Message
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as public

from cluster.errors import Reason, RequestError
from workers.engine.load import Load
from workers.engine.request import FinishReason, Request, SampleOutput, TokenLogprob
from workers.engine.sampling_params import SamplingParams

_FINISH_REASONS = {
    None: public.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: public.FINISH_REASON_STOP,
    FinishReason.LENGTH: public.FINISH_REASON_LENGTH,
    FinishReason.ERROR: public.FINISH_REASON_ERROR,
}

_CAUSES = {
    Reason.INVALID_ARGUMENT: internal.Failed.CAUSE_INVALID,
    Reason.QUEUE_FULL: internal.Failed.CAUSE_REFUSED,
    Reason.SHUTTING_DOWN: internal.Failed.CAUSE_REFUSED,
    Reason.DEADLINE_EXCEEDED: internal.Failed.CAUSE_DEADLINE,
    Reason.CANCELLED: internal.Failed.CAUSE_CANCELLED,
}

MOVED = internal.Failed(
    cause=internal.Failed.CAUSE_MOVED, message="the replica is leaving and hands the request back"
)
"""The end, here, of a request that goes on elsewhere."""


def to_request(submit: internal.Submit, engine_id: str) -> Request:
    """The engine's request, named `engine_id`. Raises RequestError (INVALID_ARGUMENT)."""
    return Request(
        request_id=engine_id,
        prompt_token_ids=list(submit.prompt_token_ids),
        params=_to_params(submit),
        priority=submit.priority,
        deadline=monotonic() + submit.timeout_s if submit.timeout_s > 0 else None,
        cache_salt=submit.cache_salt,
        num_generated=submit.num_generated,
        first_index=submit.first_index,
        embed=submit.embed,
        yields=submit.yields,
    )


def to_output(output: SampleOutput, handle: int) -> internal.SampleOutput:
    """New tokens or an embedding, for the wire."""
    message = internal.SampleOutput(
        handle=handle,
        index=output.index,
        token_ids=output.token_ids,
        position=output.position,
        finish_reason=_FINISH_REASONS.get(output.finish_reason, public.FINISH_REASON_UNSPECIFIED),
        stop_token_id=output.stop_token_id,
    )
    if output.started is not None:
        message.started.cached_prompt_tokens = output.started.cached_prompt_tokens
        message.started.queue_s = output.started.queue_s
    if output.embedding is not None:
        message.embedding = output.embedding.astype("<f4").tobytes()
    if output.logprobs:
        message.logprobs.extend(map(_to_logprob, output.logprobs))
    if output.prompt_logprobs:
        message.prompt_logprobs.extend(map(_to_logprob, output.prompt_logprobs))
    return message


def to_failure(error: RequestError, handle: int) -> internal.RequestEnd:
    """The end of a request that failed."""
    cause = _CAUSES.get(error.reason, internal.Failed.CAUSE_INTERNAL)
    failed = internal.Failed(
        cause=cause,
        message=error.message,
        field=error.field,
        value=error.value,
        accepted=error.accepted,
    )
    return internal.RequestEnd(handle=handle, failed=failed)


def to_load(load: Load, *, draining: bool) -> internal.Load:
    """A load report."""
    return internal.Load(
        running_sequences=load.running_sequences,
        waiting_requests=load.waiting_requests,
        queued_prefill_tokens=load.queued_prefill_tokens,
        free_blocks=load.free_blocks,
        total_blocks=load.total_blocks,
        prefill_tokens_per_s=load.prefill_tokens_per_s,
        decode_tokens_per_s=load.decode_tokens_per_s,
        draining=draining,
        max_running_sequences=load.max_running_sequences,
        fetch_tokens_per_s=load.fetch_tokens_per_s,
    )


def _to_params(submit: internal.Submit) -> SamplingParams:
    wanted, stop = submit.sampling, submit.stop
    return SamplingParams(
        **_given(wanted, "temperature", "top_k", "top_p", "min_p", "seed"),
        **_given(wanted, "repetition_penalty", "frequency_penalty", "presence_penalty"),
        **_given(stop, "max_tokens"),
        **_given(submit.logprobs, "top_logprobs", "prompt_top_logprobs"),
        logit_bias=dict(wanted.logit_bias),
        allowed_token_ids=tuple(wanted.allowed_token_ids),
        banned_token_ids=tuple(wanted.banned_token_ids),
        n=submit.n or 1,
        min_tokens=stop.min_tokens,
        stop_token_ids=tuple(stop.stop_token_ids),
        ignore_eos=stop.ignore_eos,
    )


def _given(message: Message, *names: str) -> dict[str, Any]:
    """The optional fields that the sender has set; the others keep the engine's defaults."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _to_logprob(logprob: TokenLogprob) -> public.TokenLogprob:
    return public.TokenLogprob(
        token=public.TokenLogprob.Candidate(token_id=logprob.token_id, logprob=logprob.logprob),
        top=[
            public.TokenLogprob.Candidate(token_id=token_id, logprob=value)
            for token_id, value in logprob.top
        ],
    )
