"""Answers that were kept, as messages of the request that they are given to."""

from typing import TypeVar

from trunkline.internal.v1 import answer_pb2 as internal
from trunkline.v1 import inference_pb2 as pb

from router.job import Job
from router.progress import Progress

Message = TypeVar("Message", pb.GenerateResponse, pb.ChatResponse)


def replay(
    answer: internal.Answer,
    job: Job,
    progress: Progress,
    kind: type[Message],
    source: pb.CacheSource.ValueType,
) -> list[Message]:
    """The messages, the last of which says where they come from; `progress` counts them."""
    request_id, model = job.options.request_id, job.model.name
    messages: list[Message] = []
    for delta in answer.deltas:
        progress.count(delta)
        messages.append(kind(request_id=request_id, model=model, delta=delta))
    messages[0].prompt_logprobs.extend(answer.prompt_logprobs)
    last = kind(
        request_id=request_id,
        model=model,
        usage=progress.usage(),
        timings=progress.timings(),
        cache_source=source,
    )
    messages.append(last)
    return messages
