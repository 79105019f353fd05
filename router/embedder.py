"""Embeddings of prompts, which replicas compute."""

from collections.abc import Callable
from typing import Final

import numpy as np
from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from cluster.errors import Reason, RequestError
from router.dispatch import Dispatch, DispatchTools
from router.fleet.served_model import ServedModel
from router.job import Job
from router.policies.route_request import RouteRequest
from router.prompt import decode, of_generate
from router.validation.prompt import check_prompt_token_ids

Floats = np.ndarray[tuple[int], np.dtype[np.float32]]

_VALUE: Final = np.dtype("<f4")


class Embedder:
    """Has prompts embedded, on the same ways as tokens are had: by the routing policy, and at
    another replica whatever becomes of the first."""

    def __init__(self, tools: DispatchTools) -> None:
        self._tools = tools

    async def embed(
        self, job: Job, model: ServedModel, deadline: float, on_sent: Callable[[], None]
    ) -> Floats:
        """What `model` makes of a job's prompt: float32 [hidden_size], of length 1.

        A model that is not the job's gets the text of it. `deadline` is on time.monotonic();
        `on_sent` is called when a replica has been given work. Raises RequestError: as
        Dispatch.take, INVALID_ARGUMENT if the prompt is too long for the model, INTERNAL if what
        comes is no embedding.
        """
        dispatch = Dispatch(await _embedding_job(job, model, deadline), self._tools, on_sent)
        try:
            [output] = await dispatch.take()
        finally:
            dispatch.cancel()
        return _embedding_of(output)


async def _embedding_job(job: Job, model: ServedModel, deadline: float) -> Job:
    """Under the job's id and salt, and where its prefix is cached: if its own model embeds it, the
    keys and values are then found when it is answered."""
    options = pb.RequestOptions(
        request_id=job.options.request_id, priority=job.options.priority, n=1
    )
    token_ids = job.prompt_token_ids
    if model is not job.model:
        text = await decode(token_ids, job.model)
        prompt = await of_generate(pb.GenerateRequest(prompt=text), model)
        token_ids = prompt.token_ids
        check_prompt_token_ids("prompt", token_ids, model.card)
    route = RouteRequest(
        request_id=job.options.request_id,
        model=model.card,
        token_ids=token_ids,
        session_id=job.route.session_id,
        cache_salt=job.route.cache_salt,
        computes_all=True,
    )
    return Job(model, token_ids, options, route, job.admitted_at, deadline, embed=True)


def _embedding_of(output: internal.SampleOutput) -> Floats:
    if output.embedding and len(output.embedding) % _VALUE.itemsize == 0:
        values = np.frombuffer(output.embedding, _VALUE).astype(np.float32)
        if np.isfinite(values).all():
            return values
    raise RequestError(
        Reason.INTERNAL, f"a replica sent no embedding, but {len(output.embedding)} bytes"
    )
