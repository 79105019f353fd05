"""What our own headers ask for, beside OpenAI's bodies."""

from typing import NamedTuple

from starlette.requests import Request

from cluster.errors import invalid

CACHE_HEADER = "x-trunkline-cache"
"""`bypass`: neither answer from the response cache nor keep the answer there."""
SESSION_HEADER = "x-trunkline-session"
"""The contract's `options.session_id`."""

_BYPASS = "bypass"


class OwnHeaders(NamedTuple):
    """The values that a request has of them."""

    no_response_cache: bool
    session_id: str


def own_headers(request: Request) -> OwnHeaders:
    """Reads them. Raises RequestError for a value that says nothing."""
    cache = request.headers.get(CACHE_HEADER)
    if cache not in (None, _BYPASS):
        raise invalid(CACHE_HEADER, cache, f"{_BYPASS} or no such header")
    return OwnHeaders(cache == _BYPASS, request.headers.get(SESSION_HEADER, ""))
