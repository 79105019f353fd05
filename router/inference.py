"""What the router does for clients, whatever protocol they speak."""

import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from trunkline.v1 import inference_pb2 as pb

from cluster.errors import RequestError
from cluster.tenants import Tenant
from router.admission import Admission
from router.auth import Authenticator
from router.call import Call
from router.catalog.fallback import check_can_begin, first_to_answer
from router.catalog.models import Models
from router.dispatch import Dispatch, DispatchTools
from router.fleet.fleet import Fleet
from router.fleet.served_model import ServedModel
from router.gate import Gate
from router.generation import Generation
from router.job import Job, make_job
from router.progress import Progress
from router.prompt import Prompt, decode, of_chat, of_generate, of_tokenize
from router.request_log import RequestLog
from router.response_cache.response_cache import ResponseCache
from router.response_cache.semantic_cache import SemanticCache
from router.validation.checks import check_token_ids
from router.validation.options import (
    check_options,
    check_permitted,
    check_request_id,
    timeout_s,
)

Message = TypeVar("Message", pb.GenerateResponse, pb.ChatResponse)
Encode = Callable[[ServedModel], Awaitable[Prompt]]


class InferenceService:
    """The methods of `trunkline.v1.Inference`; gRPC and HTTP servers are thin adapters around it.

    Every method raises RequestError and nothing else. Closing a generator (`aclose`, best by
    `contextlib.aclosing`) before its end cancels the request in the engine. The first message
    of a stream comes when there are first tokens (errors of admission are raised before it);
    a message without `delta` is the last one and carries usage and timings.
    """

    def __init__(
        self,
        fleet: Fleet,
        auth: Authenticator,
        gate: Gate,
        admission: Admission,
        responses: ResponseCache,
        semantic: SemanticCache,
        models: Models,
        tools: DispatchTools,
    ) -> None:
        self._fleet = fleet
        self._auth = auth
        self._gate = gate
        self._admission = admission
        self._responses = responses
        self._semantic = semantic
        self._models = models
        self._tools = tools
        self._metrics = tools.metrics
        self._settings = tools.settings

    @property
    def is_ready(self) -> bool:
        """Whether this router should be sent requests: it knows a model and is not draining."""
        return self._gate.is_open and bool(self._fleet.models)

    async def check_caller(self, call: Call) -> None:
        """Whether whoever calls may ask for anything at all, before the request is read.

        The methods below look for themselves; a request that ends here is counted as theirs are.
        """
        try:
            await self._auth.tenant(call)
        except RequestError:
            with RequestLog(self._metrics, call):
                raise

    def generate(
        self, request: pb.GenerateRequest, call: Call
    ) -> AsyncGenerator[pb.GenerateResponse, None]:
        """Continue a prompt."""
        return self._stream(pb.GenerateResponse, request, lambda m: of_generate(request, m), call)

    def chat(self, request: pb.ChatRequest, call: Call) -> AsyncGenerator[pb.ChatResponse, None]:
        """Answer a conversation."""
        return self._stream(pb.ChatResponse, request, lambda m: of_chat(request, m), call)

    async def tokenize(self, request: pb.TokenizeRequest, call: Call) -> pb.TokenizeResponse:
        """Text or messages to token ids."""
        with RequestLog(self._metrics, call) as request_log:
            model = await self._only_model(request.model, call, request_log)
            prompt = await of_tokenize(request, model)
            return pb.TokenizeResponse(model=model.name, token_ids=prompt.token_ids)

    async def detokenize(self, request: pb.DetokenizeRequest, call: Call) -> pb.DetokenizeResponse:
        """Token ids to text."""
        with RequestLog(self._metrics, call) as request_log:
            model = await self._only_model(request.model, call, request_log)
            check_token_ids("token_ids", request.token_ids, model.card.vocab_size)
            text = await decode(request.token_ids, model)
            return pb.DetokenizeResponse(model=model.name, text=text)

    async def list_models(self, call: Call) -> pb.ListModelsResponse:
        """The models known to this router and the names that stand for them, by name."""
        await self._auth.tenant(call)
        return pb.ListModelsResponse(models=self._models.listing())

    async def _only_model(self, name: str, call: Call, request_log: RequestLog) -> ServedModel:
        """The first model that a name stands for."""
        tenant = await self._auth.tenant(call)
        request_log.tenant = tenant.name
        model, *_ = await self._models.find(name, _who(tenant, ""))
        request_log.model = model.name
        return model

    async def _stream(
        self,
        kind: type[Message],
        request: pb.GenerateRequest | pb.ChatRequest,
        encode: Encode,
        call: Call,
    ) -> AsyncGenerator[Message, None]:
        with RequestLog(self._metrics, call) as request_log, self._gate.enter():
            tenant = await self._auth.tenant(call)
            request_log.tenant = tenant.name
            options = request.options
            check_request_id(options.request_id)
            request_log.request_id = request_id = options.request_id or uuid.uuid4().hex
            who = _who(tenant, options.session_id or request_id)
            models = await self._models.find(request.model, who)

            async def answer(model: ServedModel, is_last: bool) -> AsyncGenerator[Message, None]:
                job = await self._admit(model, options, encode, call, tenant, request_log)
                progress = request_log.progress
                fresh = self._compute(kind, job, options, tenant, progress, is_last=is_last)
                return self._responses.through(job, options, progress, kind, fresh)

            answered = (
                first_to_answer(models, answer, self._metrics)
                if len(models) > 1
                else await answer(models[0], True)
            )
            async with aclosing(answered) as messages:
                async for message in messages:
                    yield message

    async def _compute(
        self,
        kind: type[Message],
        job: Job,
        given: pb.RequestOptions,
        tenant: Tenant,
        progress: Progress,
        *,
        is_last: bool,
    ) -> AsyncGenerator[Message, None]:
        if not is_last:
            check_can_begin(job)
        async with self._admission.turn(job, tenant, progress) as turn:
            job = replace(job, yields=turn.yields)
            dispatch = Dispatch(job, self._tools, turn.sent)
            fresh = Generation(job, dispatch, progress, kind).messages()
            # Within the turn, for embedding a prompt is work for replicas, too.
            answer = self._semantic.through(job, given, progress, kind, fresh, turn.sent)
            async with aclosing(answer) as messages:
                async for message in messages:
                    turn.serve(progress.completion_tokens)
                    yield message

    async def _admit(
        self,
        model: ServedModel,
        options: pb.RequestOptions,
        encode: Encode,
        call: Call,
        tenant: Tenant,
        request_log: RequestLog,
    ) -> Job:
        progress = request_log.progress
        request_log.model = model.name
        check_options(options, model.card.vocab_size)
        check_permitted(options, tenant.limits)
        request_log.labels = dict(options.metadata)
        prompt = await encode(model)
        job = make_job(
            request_log.request_id,
            model,
            prompt,
            options,
            cache_salt=tenant.cache_salt,
            admitted_at=progress.admitted_at,
            deadline=self._deadline(options, call, progress.admitted_at),
        )
        progress.prompt_tokens = len(prompt.token_ids)
        return job

    def _deadline(self, options: pb.RequestOptions, call: Call, admitted_at: float) -> float:
        """The earliest of the client's, the request's own and the router's; on monotonic()."""
        times_s = (timeout_s(options), self._settings.max_request_s)
        deadlines = [admitted_at + seconds for seconds in times_s if seconds is not None]
        return min(deadlines if call.deadline is None else [*deadlines, call.deadline])


def _who(tenant: Tenant, name: str) -> bytes:
    """Whose requests belong together; `name` of the session, or else of the request."""
    return f"{tenant.name} {name}".encode()
