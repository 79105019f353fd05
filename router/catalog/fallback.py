"""Requests that another model answers, because the first cannot take them."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from trunkline.v1 import inference_pb2 as pb

from cluster.errors import Reason, RequestError
from router.fleet.served_model import ServedModel
from router.job import Job
from router.metrics import Metrics

Message = TypeVar("Message", pb.GenerateResponse, pb.ChatResponse)

_REASONS: Final = frozenset({Reason.NO_REPLICA, Reason.QUEUE_FULL})


def check_can_begin(job: Job) -> None:
    """Whether the job's model can answer it without waiting for a replica, and in time.

    Raises RequestError (NO_REPLICA, QUEUE_FULL).
    """
    replicas = job.model.replicas
    if not replicas.num_ready:
        raise RequestError(Reason.NO_REPLICA, f"no replica of {job.model.name} is ready")
    soonest_s, left_s = replicas.soonest_s(job.route), job.deadline - time.monotonic()
    if soonest_s > left_s:
        raise RequestError(
            Reason.QUEUE_FULL,
            f"its first token is expected in {soonest_s:.3g}s, its deadline is in {left_s:.3g}s",
        )


async def first_to_answer(
    models: Sequence[ServedModel],
    answer: Callable[[ServedModel, bool], Awaitable[AsyncGenerator[Message, None]]],
    metrics: Metrics,
) -> AsyncGenerator[Message, None]:
    """The answer of the first of the models that takes the request.

    `answer` is told whether there is no other model. Raises RequestError: what the last model says
    for NO_REPLICA and QUEUE_FULL, and whatever else any of them says.
    """
    for position, model in enumerate(models):
        is_last = position == len(models) - 1
        has_begun = False
        try:
            async with aclosing(await answer(model, is_last)) as messages:
                async for message in messages:
                    has_begun = True
                    yield message
        except RequestError as error:
            if has_begun or is_last or error.reason not in _REASONS:
                raise
            metrics.model_fallbacks.labels(model.name, error.reason).inc()
        else:
            return
