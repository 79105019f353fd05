"""The HTTP server's application."""

from http import HTTPStatus
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cluster.errors import RequestError
from router.http.chat import ChatEndpoint
from router.http.completions import CompletionEndpoint
from router.http.errors import (
    BodyTooLargeError,
    error_content,
    json_response,
    request_error_response,
)
from router.http.health import HealthEndpoint
from router.http.models import ModelsEndpoint
from router.http.request_id import HEADER, RequestIds, request_id
from router.http.service import Service
from router.metrics import Metrics

_CLIENT_CLOSED_REQUEST = 499
"""nginx's status for a client that has left; it is seen in logs only."""


def create_app(
    service: Service, metrics: Metrics, *, max_body_bytes: int, stall_s: float
) -> Starlette:
    """The OpenAI dialect of `service`.

    Bodies above `max_body_bytes` are refused; a client that does not take an event within `stall_s`
    is given up.
    """
    chat = ChatEndpoint(service, max_body_bytes, stall_s)
    completions = CompletionEndpoint(service, max_body_bytes, stall_s)
    models = ModelsEndpoint(service)
    health = HealthEndpoint(service, metrics)
    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat.create, methods=["POST"]),
            Route("/v1/completions", completions.create, methods=["POST"]),
            Route("/v1/models", models.list),
            Route("/v1/models/{model:path}", models.get),
            Route("/healthz", health.live),
            Route("/readyz", health.ready),
            Route("/metrics", health.metrics),
        ],
        middleware=[Middleware(RequestIds)],
        exception_handlers={
            RequestError: _request_failed,
            BodyTooLargeError: _body_too_large,
            ClientDisconnect: _client_left,
            HTTPException: _no_such_route,
            Exception: _internal_error,
        },
    )


async def _request_failed(request: Request, error: Exception) -> Response:
    return request_error_response(cast(RequestError, error))


async def _body_too_large(request: Request, error: Exception) -> Response:
    content = error_content(
        str(error), "invalid_request_error", param=None, code="request_too_large"
    )
    return json_response(content, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"connection": "close"})


async def _client_left(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED_REQUEST)


async def _no_such_route(request: Request, error: Exception) -> Response:
    refusal = cast(HTTPException, error)
    message = f"{request.method} {request.url.path}: {refusal.detail}"
    content = error_content(message, "invalid_request_error", param=None, code="unknown_url")
    return json_response(content, refusal.status_code, refusal.headers)


async def _internal_error(request: Request, error: Exception) -> Response:
    content = error_content(
        "The server failed; its log says why.",
        "server_error",
        param=None,
        code="internal_error",
    )
    # Starlette sends this outside of the middleware that adds the id, then lets the error through
    # to uvicorn, which closes the connection: a client that did not know would use it again.
    headers = {HEADER: request_id(request), "connection": "close"}
    return json_response(content, HTTPStatus.INTERNAL_SERVER_ERROR, headers)
