"""The run of one job, from its first dispatch to its last message."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from cluster.errors import Reason, RequestError
from router.dispatch import Dispatch
from router.fleet.ticket import Event
from router.job import Job
from router.logprobs import add_bytes
from router.progress import Progress
from router.sample import Sample

Message = TypeVar("Message", pb.GenerateResponse, pb.ChatResponse)

_REASONS = {
    internal.Failed.CAUSE_INVALID: Reason.INVALID_ARGUMENT,
    internal.Failed.CAUSE_REFUSED: Reason.REPLICA_LOST,
    internal.Failed.CAUSE_DEADLINE: Reason.DEADLINE_EXCEEDED,
    internal.Failed.CAUSE_CANCELLED: Reason.REPLICA_LOST,
}


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
        self._ended = False

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Deltas as they come; then usage and timings. Raises RequestError.

        However it ends, the replica stops working on the job.
        """
        try:
            while not self._ended:
                for event in await self._next_events():
                    if isinstance(event, internal.RequestEnd):
                        self._end(event)
                    elif self._samples[event.index].is_finished:
                        self._samples[event.index].skip(event)
                    else:
                        yield await self._advance(event)
                self._ended = self._ended or self._stopped_early()
            yield self._last_message()
        finally:
            self._dispatch.cancel()

    async def _next_events(self) -> list[Event]:
        try:
            async with asyncio.timeout(self._job.deadline - time.monotonic()):
                events = await self._dispatch.take()
        except TimeoutError as error:
            elapsed_s = time.monotonic() - self._job.admitted_at
            raise RequestError(
                Reason.DEADLINE_EXCEEDED, f"the deadline passed after {elapsed_s:.3f}s"
            ) from error
        finally:
            self._progress.replica = self._dispatch.replica
        return events

    async def _advance(self, output: internal.SampleOutput) -> Message:
        if output.HasField("started"):
            self._progress.cached_prompt_tokens = output.started.cached_prompt_tokens
            self._progress.started_at = self._dispatch.sent_at + output.started.queue_s
        delta = self._samples[output.index].push(output)
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

    def _end(self, end: internal.RequestEnd) -> None:
        if end.HasField("failed"):
            raise _error_of(end.failed)
        if not all(sample.is_finished for sample in self._samples):
            raise RuntimeError(f"replica {self._dispatch.replica} ended unfinished samples")
        self._ended = True

    def _stopped_early(self) -> bool:
        """Whether all samples are finished, but some of them only here, by a stop string."""
        return all(sample.is_finished for sample in self._samples) and not all(
            sample.ended_in_engine for sample in self._samples
        )


def _error_of(failed: internal.Failed) -> RequestError:
    reason = _REASONS.get(failed.cause, Reason.INTERNAL)
    return RequestError(
        reason,
        failed.message or f"the replica reports {reason}",
        field=failed.field,
        value=failed.value,
        accepted=failed.accepted,
    )
