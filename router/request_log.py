"""The account of one request: its log line and its place in the metrics."""

import asyncio
import time
from types import TracebackType
from typing import Final, Self

import structlog

from cluster.errors import Reason, RequestError
from router.call import Call
from router.metrics import Metrics
from router.progress import Progress

REFUSALS: Final = frozenset(
    {
        Reason.UNAUTHENTICATED,
        Reason.AUTH_UNAVAILABLE,
        Reason.PERMISSION_DENIED,
        Reason.QUOTA_EXCEEDED,
        Reason.QUEUE_FULL,
    }
)
"""Why requests are turned away without having been tried."""

log = structlog.get_logger(__name__)


class RequestLog:
    """A context in which one request runs.

    Errors that are not RequestError leave it as RequestError INTERNAL, after they have been
    logged with their traceback.
    """

    def __init__(self, metrics: Metrics, call: Call) -> None:
        self.progress = Progress(admitted_at=time.monotonic())
        self.request_id = ""
        """Set once it is known to be well-formed."""
        self.tenant = ""
        """Set once it is known."""
        self.model = ""
        """Set once it is found: what clients make up has no place in the metrics."""
        self.labels: dict[str, str] = {}
        """The client's own, once they are checked."""
        self._metrics = metrics
        self._log = log.bind(peer=call.peer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        requests = self._metrics.requests.of(self.model)
        requests.count_tokens(self.progress)
        if error is None:
            requests.count_success(self.progress)
            self._bound().info("request done", finish=self.progress.finish_reasons)
        elif isinstance(error, RequestError):
            self._fail(error.reason, error.message)
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._fail(Reason.CANCELLED, "the client has gone")
        elif isinstance(error, Exception):
            self._bound().error("internal error", exc_info=error)
            self._fail(Reason.INTERNAL, str(error))
            raise RequestError(
                Reason.INTERNAL, f"internal error, logged with request id {self.request_id!r}"
            ) from error

    def _fail(self, reason: Reason, message: str) -> None:
        self._metrics.requests_failed.labels(self.model, reason).inc()
        if reason in REFUSALS:
            self._metrics.requests_refused.labels(self.tenant, reason).inc()
        self._bound().info("request failed", reason=reason, error=message)

    def _bound(self) -> structlog.stdlib.BoundLogger:
        progress = self.progress
        bound: structlog.stdlib.BoundLogger = self._log.bind(
            request_id=self.request_id,
            tenant=self.tenant,
            model=self.model,
            replica=progress.replica,
            prompt_tokens=progress.prompt_tokens,
            completion_tokens=progress.completion_tokens,
            ttft_s=progress.time_to_first_token_s,
            total_s=time.monotonic() - progress.admitted_at,
            labels=self.labels,
        )
        return bound
