"""A request that has been checked."""

import random
import time
from dataclasses import dataclass, replace

from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1 import sampling_pb2

from router.fleet.served_model import ServedModel
from router.policies.route_request import RouteRequest
from router.prompt import Prompt
from router.validation.prompt import check_prompt_token_ids, max_tokens

_LEAST_TIMEOUT_S = 0.001


@dataclass(frozen=True, slots=True)
class Job:
    """All that is needed to run a request, on whatever replica."""

    model: ServedModel
    prompt_token_ids: list[int]
    options: pb.RequestOptions
    """With request id, n, seed and max_tokens filled in."""
    route: RouteRequest
    """The request as routing policies see it."""
    admitted_at: float
    """On time.monotonic()."""
    deadline: float
    """On time.monotonic()."""
    embed: bool = False
    """Whether an embedding of the prompt is wanted, in place of tokens."""
    yields: bool = False
    """Whether it makes way for others at a replica."""

    @property
    def n(self) -> int:
        """Samples to generate."""
        return self.options.n

    def route_of(self, indices: range, output: list[int]) -> RouteRequest:
        """Some of its samples as routing policies see them, after tokens that have come."""
        token_ids = self.prompt_token_ids + output
        return replace(self.route, token_ids=token_ids, n=len(indices))

    def submit(self, indices: range, output: list[int], *, is_moved: bool) -> internal.Submit:
        """Some of its samples as a replica gets them, but for the handle.

        They go on after `output`, tokens that have come already. Where the job `is_moved` from
        another replica, this one is not asked for what the first has told.
        """
        options = self.options
        logprobs = sampling_pb2.LogprobsOptions()
        logprobs.CopyFrom(options.logprobs)
        if is_moved:
            logprobs.ClearField("prompt_top_logprobs")
        stop = sampling_pb2.StopConditions()
        stop.CopyFrom(options.stop)
        stop.ClearField("stop_strings")
        return internal.Submit(
            request_id=options.request_id,
            prompt_token_ids=self.prompt_token_ids + output,
            sampling=options.sampling,
            stop=stop,
            logprobs=logprobs,
            n=len(indices),
            priority=options.priority,
            timeout_s=max(self.deadline - time.monotonic(), _LEAST_TIMEOUT_S),
            cache_salt=self.route.cache_salt,
            num_generated=len(output),
            first_index=indices.start,
            embed=self.embed,
            yields=self.yields,
        )


def make_job(
    request_id: str,
    model: ServedModel,
    prompt: Prompt,
    options: pb.RequestOptions,
    *,
    cache_salt: bytes,
    admitted_at: float,
    deadline: float,
) -> Job:
    """The job for options that have been checked; `cache_salt` is the tenant's.

    Raises RequestError if prompt and output do not fit the model.
    """
    check_prompt_token_ids(prompt.field, prompt.token_ids, model.card)
    complete = pb.RequestOptions()
    complete.CopyFrom(options)
    complete.request_id = request_id
    complete.n = options.n or 1
    complete.stop.max_tokens = max_tokens(options.stop, len(prompt.token_ids), model.card)
    if not options.sampling.HasField("seed"):
        complete.sampling.seed = random.getrandbits(64)
    route = RouteRequest(
        request_id=request_id,
        model=model.card,
        token_ids=prompt.token_ids,
        n=complete.n,
        session_id=options.session_id,
        cache_salt=cache_salt,
    )
    return Job(model, prompt.token_ids, complete, route, admitted_at, deadline)
