"""/healthz, /readyz and /metrics."""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from router.http.service import Service
from router.metrics import CONTENT_TYPE, Metrics


class HealthEndpoint:
    """Tells machines how the router is."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    async def live(self, request: Request) -> Response:
        """The process answers."""
        return PlainTextResponse("ok\n")

    async def ready(self, request: Request) -> Response:
        """Status 200 if this router should be sent requests, else 503."""
        if self._service.is_ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse("not ready\n", 503)

    async def metrics(self, request: Request) -> Response:
        """What the router counts, for Prometheus."""
        return Response(self._metrics.render(), headers={"content-type": CONTENT_TYPE})
