"""What the endpoints for both kinds of completion share."""

import time
from typing import Any

from starlette.requests import Request

from router.call import Call
from router.http.request_id import request_id


def call_of(request: Request) -> Call:
    """What is known about a request beside its body."""
    client = request.client
    return Call(
        peer=f"{client.host}:{client.port}" if client else "",
        authorization=request.headers.get("authorization", ""),
    )


def new_head(request: Request, kind: str, id_prefix: str) -> dict[str, Any]:
    """The fields with which an answer and all chunks of a stream begin."""
    return {
        "id": f"{id_prefix}-{request_id(request)}",
        "object": kind,
        "created": int(time.time()),
    }
