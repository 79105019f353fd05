"""The run of one job, from its first dispatch to its last message."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, Generic, TypeVar

from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from router.dispatch import Dispatch
from router.job import Job
from router.logprobs import add_bytes
from router.progress import Progress
from router.sample import Sample

Message = TypeVar("Message", pb.GenerateResponse, pb.ChatResponse)


class Generation(Generic[Message]):
    """Turns what replicas send for a job into messages of the given kind."""

    def __init__(
        self, job: Job, dispatch: Dispatch, progress: Progress, kind: type[Message]
    ) -> None:
        self._job = job
        self._dispatch = dispatch
        self._progress = progress
        self._kind: type[Message] = kind
        self._request_id = job.options.request_id
        self._model = job.model.name
        codec = job.model.codec
        after = codec.first_text(job.prompt_token_ids)
        self._samples = [Sample(i, codec, after, job.options.stop) for i in range(job.n)]

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Deltas as they come; then usage and timings. Raises RequestError.

        However it ends, replicas stop working on the job.
        """
        dispatch, progress = self._dispatch, self._progress
        num_unfinished = len(self._samples)
        try:
            while num_unfinished:
                try:
                    outputs = await dispatch.take()
                finally:
                    progress.replica = dispatch.replica
                for output in outputs:
                    delta = self._advance(output)
                    num_unfinished -= bool(delta.finish_reason)
                    message = self._message(delta=delta)
                    if output.prompt_logprobs:
                        # A long prompt has a million candidates.
                        logprobs = output.prompt_logprobs
                        await asyncio.to_thread(add_bytes, logprobs, self._job.model.codec)
                        message.prompt_logprobs.extend(logprobs)
                    yield message
            yield self._message(usage=progress.usage(), timings=progress.timings())
        finally:
            dispatch.cancel()

    def _advance(self, output: internal.SampleOutput) -> pb.Delta:
        progress = self._progress
        if progress.started_at is None and output.HasField("started"):
            # Not where a sample goes on: there, its own output counts as prompt.
            progress.cached_prompt_tokens = output.started.cached_prompt_tokens
            progress.started_at = self._dispatch.sent_at + output.started.queue_s
        sample = self._samples[output.index]
        delta = sample.push(output)
        if sample.is_finished:
            self._dispatch.drop(output.index)
        progress.count(delta)
        return delta

    def _message(self, **content: Any) -> Message:
        return self._kind(request_id=self._request_id, model=self._model, **content)
