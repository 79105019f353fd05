"""The run of one job, from its first dispatch to its last message."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

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
        codec = job.model.codec
        after = codec.first_text(job.prompt_token_ids)
        self._samples = [Sample(i, codec, after, job.options.stop) for i in range(job.n)]

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Deltas as they come; then usage and timings. Raises RequestError.

        However it ends, replicas stop working on the job.
        """
        try:
            while not all(sample.is_finished for sample in self._samples):
                for output in await self._next_outputs():
                    yield await self._advance(output)
            yield self._last_message()
        finally:
            self._dispatch.cancel()

    async def _next_outputs(self) -> list[internal.SampleOutput]:
        try:
            return await self._dispatch.take()
        finally:
            self._progress.replica = self._dispatch.replica

    async def _advance(self, output: internal.SampleOutput) -> Message:
        if output.HasField("started") and self._progress.started_at is None:
            # Not where a sample goes on: there, its own output counts as prompt.
            self._progress.cached_prompt_tokens = output.started.cached_prompt_tokens
            self._progress.started_at = self._dispatch.sent_at + output.started.queue_s
        sample = self._samples[output.index]
        delta = sample.push(output)
        if sample.is_finished:
            self._dispatch.drop(output.index)
        self._progress.count(delta)
        message = self._kind(
            request_id=self._job.options.request_id, model=self._job.model.name, delta=delta
        )
        if output.prompt_logprobs:
            # A long prompt has a million candidates.
            await asyncio.to_thread(add_bytes, output.prompt_logprobs, self._job.model.codec)
            message.prompt_logprobs.extend(output.prompt_logprobs)
        return message

    def _last_message(self) -> Message:
        return self._kind(
            request_id=self._job.options.request_id,
            model=self._job.model.name,
            usage=self._progress.usage(),
            timings=self._progress.timings(),
        )
