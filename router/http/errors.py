"""Failures in OpenAI's shape."""

import math
from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json
from starlette.responses import Response

from cluster.errors import Reason, RequestError

_STATUS = {
    Reason.INVALID_ARGUMENT: 400,
    Reason.UNAUTHENTICATED: 401,
    Reason.AUTH_UNAVAILABLE: 503,
    Reason.PERMISSION_DENIED: 403,
    Reason.QUOTA_EXCEEDED: 429,
    Reason.MODEL_NOT_FOUND: 404,
    Reason.QUEUE_FULL: 429,
    Reason.NO_REPLICA: 503,
    Reason.REPLICA_LOST: 503,
    Reason.DEADLINE_EXCEEDED: 504,
    Reason.CANCELLED: 499,
    Reason.SHUTTING_DOWN: 503,
    Reason.INTERNAL: 500,
}

_CODES = {
    Reason.INVALID_ARGUMENT: "invalid_value",
    Reason.UNAUTHENTICATED: "invalid_api_key",
    Reason.QUOTA_EXCEEDED: "rate_limit_exceeded",
    Reason.QUEUE_FULL: "rate_limit_exceeded",
    Reason.INTERNAL: "internal_error",
}
"""OpenAI's word where it is not our own in small letters."""

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    429: "rate_limit_error",
}

_PARAMS = {
    "options.logprobs.prompt_top_logprobs": "prompt_logprobs",
    "options.logprobs.top_logprobs": "top_logprobs",
    "options.request_id": "x-request-id",
    "options.session_id": "x-trunkline-session",
    "options.sampling.": "",
    "options.stop.": "",
    "options.stop.stop_strings": "stop",
    "options.timeout": "timeout_s",
    "options.": "",
    "token_ids": "prompt",
}
"""Beginnings of the contract's paths, and what OpenAI calls them."""


class BodyTooLargeError(Exception):
    """A body that is longer than the server takes."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(f"body: longer than {max_bytes} bytes")


def json_response(
    content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """A response with a JSON body."""
    return Response(to_json(content), status, dict(headers or {}), "application/json")


def error_content(
    message: str, type_: str, *, param: str | None, code: str | None
) -> dict[str, Any]:
    """The body that OpenAI's clients read errors from."""
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


def request_error_content(error: RequestError) -> dict[str, Any]:
    """The body for a request that failed."""
    return error_content(
        error.message,
        _TYPES.get(_STATUS[error.reason], "server_error"),
        param=error.field or None,
        code=_CODES.get(error.reason, error.reason.lower()),
    )


def request_error_response(error: RequestError) -> Response:
    """The response for a request that failed before anything was sent."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
        headers["retry-after-ms"] = str(math.ceil(error.retry_after_s * 1000))
    if error.reason is Reason.DEADLINE_EXCEEDED:
        # The time that the client gave is over; its library would try again by itself.
        headers["x-should-retry"] = "false"
    if error.reason is Reason.UNAUTHENTICATED:
        headers["www-authenticate"] = "Bearer"
    return json_response(request_error_content(error), _STATUS[error.reason], headers)


def in_openai_terms(error: RequestError, params: Mapping[str, str]) -> RequestError:
    """The error with its field named as in the body; `params` goes before the common names."""
    names = {**_PARAMS, **params}
    beginnings = [beginning for beginning in names if error.field.startswith(beginning)]
    if not beginnings:
        return error
    beginning = max(beginnings, key=len)
    field = names[beginning] + error.field.removeprefix(beginning)
    return RequestError(
        error.reason,
        error.message.replace(error.field, field, 1),
        field=field,
        value=error.value,
        accepted=error.accepted,
        retry_after_s=error.retry_after_s,
    )
