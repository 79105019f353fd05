"""Checks of what Generate and Chat have in common."""

import re

from trunkline.v1 import inference_pb2 as pb
from trunkline.v1 import sampling_pb2

from cluster.errors import Reason, RequestError, invalid
from cluster.tenants import TenantLimits
from router.validation.checks import check_count, check_range, check_token_ids
from router.validation.sampling import check_sampling

_NAME = re.compile(r"[A-Za-z0-9._:-]{0,128}")
_NAME_ACCEPTED = "at most 128 characters of [A-Za-z0-9._:-]"
_MAX_STOP_STRINGS = 16
_MAX_STOP_STRING_CHARS = 256
_MAX_LABELS = 16
_MAX_LABEL_CHARS = 256
_MAX_TOP_LOGPROBS = 20


def check_request_id(request_id: str) -> None:
    """Something that can stand in logs and headers as it is."""
    if not _NAME.fullmatch(request_id):
        raise invalid("options.request_id", request_id, _NAME_ACCEPTED)


def check_options(options: pb.RequestOptions, vocab_size: int) -> None:
    """Every option within the range that the contract names."""
    check_request_id(options.request_id)
    _check_session_id(options.session_id)
    # Where nothing is said, there is nothing to read, which takes most of the time.
    if options.HasField("sampling"):
        check_sampling(options.sampling, vocab_size)
    if options.HasField("stop"):
        _check_stop(options.stop, vocab_size)
    if options.HasField("logprobs"):
        _check_logprobs(options.logprobs)
    check_range("options.n", options.n, 0, 128)
    check_range("options.priority", options.priority, -100, 100)
    _check_metadata(options)


def check_permitted(options: pb.RequestOptions, limits: TenantLimits) -> None:
    """Every option within what the tenant may ask for. Raises RequestError (PERMISSION_DENIED)."""
    if options.priority > limits.max_priority:
        accepted = f"at most {limits.max_priority} with this API key"
        raise RequestError(
            Reason.PERMISSION_DENIED,
            f"options.priority: got {options.priority}, expected {accepted}",
            field="options.priority",
            value=options.priority,
            accepted=accepted,
        )


def timeout_s(options: pb.RequestOptions) -> float | None:
    """The time that the client gives its request, if it sets one."""
    if not options.HasField("timeout"):
        return None
    timeout = options.timeout
    seconds = timeout.seconds + timeout.nanos * 1e-9
    if not 0 <= timeout.nanos < 1_000_000_000 or seconds <= 0:
        raise invalid("options.timeout", f"{timeout.seconds}s {timeout.nanos}ns", "more than 0s")
    return seconds


def _check_session_id(session_id: str) -> None:
    if not _NAME.fullmatch(session_id):
        raise invalid("options.session_id", session_id, _NAME_ACCEPTED)


def _check_stop(stop: sampling_pb2.StopConditions, vocab_size: int) -> None:
    if stop.HasField("max_tokens"):
        check_range("options.stop.max_tokens", stop.max_tokens, 1, 2**31 - 1)
    if stop.HasField("max_tokens") and stop.min_tokens > stop.max_tokens:
        raise invalid(
            "options.stop.min_tokens", stop.min_tokens, f"at most max_tokens ({stop.max_tokens})"
        )
    check_count("options.stop.stop_strings", len(stop.stop_strings), _MAX_STOP_STRINGS)
    for position, text in enumerate(stop.stop_strings):
        if not 1 <= len(text) <= _MAX_STOP_STRING_CHARS:
            raise invalid(
                f"options.stop.stop_strings[{position}]",
                text,
                f"1 to {_MAX_STOP_STRING_CHARS} characters",
            )
    check_token_ids("options.stop.stop_token_ids", stop.stop_token_ids, vocab_size)


def _check_logprobs(logprobs: sampling_pb2.LogprobsOptions) -> None:
    check_range("options.logprobs.top_logprobs", logprobs.top_logprobs, 0, _MAX_TOP_LOGPROBS)
    check_range(
        "options.logprobs.prompt_top_logprobs", logprobs.prompt_top_logprobs, 0, _MAX_TOP_LOGPROBS
    )


def _check_metadata(options: pb.RequestOptions) -> None:
    check_count("options.metadata", len(options.metadata), _MAX_LABELS)
    for label, text in options.metadata.items():
        check_count("options.metadata", len(label), _MAX_LABEL_CHARS)
        check_count(f"options.metadata[{label}]", len(text), _MAX_LABEL_CHARS)
