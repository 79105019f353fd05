"""From the bytes of a request to a checked body."""

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import Request

from cluster.errors import Reason, RequestError, invalid
from router.http.errors import BodyTooLargeError

Parsed = TypeVar("Parsed", bound=BaseModel)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body.

    Raises BodyTooLargeError as soon as it is longer than `max_bytes`, and ClientDisconnect.
    """
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLargeError(max_bytes)
    return bytes(body)


def parse(kind: type[Parsed], body: bytes) -> Parsed:
    """The body as an object of `kind`. Raises RequestError for the first thing wrong with it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _request_error(first) from error


def _request_error(error: ErrorDetails) -> RequestError:
    field = _path(error["loc"])
    match error["type"]:
        case "json_invalid":
            return RequestError(Reason.INVALID_ARGUMENT, f"body: {error['msg']}", accepted="JSON")
        case "missing":
            return RequestError(Reason.INVALID_ARGUMENT, f"{field}: is required", field=field)
        case "extra_forbidden":
            message = f"{field}: unknown field"
            return RequestError(Reason.INVALID_ARGUMENT, message, field=field, value=error["input"])
        case "accepts":
            return invalid(field, error["input"], error["ctx"]["accepted"])
        case _:
            accepted = error["msg"].removeprefix("Input should be ")
            return invalid(field or "body", error["input"], accepted)


def _path(location: tuple[int | str, ...]) -> str:
    path = ""
    for step in location:
        if isinstance(step, int):
            path += f"[{step}]"
        elif step != "[key]":  # pydantic's mark for the key of a mapping
            path += f".{step}" if path else step
    return path
