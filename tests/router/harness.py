"""A router inside a test, and words to talk to it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
from prometheus_client.parser import text_string_to_metric_families
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1.inference_pb2_grpc import InferenceStub

from cluster.registry import Registry
from cluster.settings import RouterSettings
from router.metrics import Metrics
from router.router import Router

if TYPE_CHECKING:
    from trunkline.v1.inference_pb2_grpc import InferenceAsyncStub

PATIENCE_S = 20.0


class Client:
    """A gRPC client of one router."""

    def __init__(
        self, channel: grpc.aio.Channel, addresses: dict[str, str], metrics: Metrics
    ) -> None:
        self.channel = channel
        self._metrics = metrics
        self.addresses = addresses
        self.stop: Callable[[], None] = lambda: None
        """Tells the router to drain and end."""
        self.stub: InferenceAsyncStub = InferenceStub(channel)

    async def generate(self, prompt: str = "hello", **options: Any) -> list[pb.GenerateResponse]:
        """All messages of an answer."""
        request = pb.GenerateRequest(prompt=prompt, options=pb.RequestOptions(**options))
        return [message async for message in self.stub.Generate(request)]

    async def num_ready(self, model: str = "tiny") -> int:
        """Replicas that the router counts as ready."""
        models = (await self.stub.ListModels(pb.ListModelsRequest())).models
        return sum(found.ready_replicas for found in models if found.name == model)

    def metric(self, name: str, **labels: str) -> float | None:
        """A sample of the router's metrics."""
        for family in text_string_to_metric_families(self._metrics.render().decode()):
            for sample in family.samples:
                if sample.name == name and sample.labels == labels:
                    return sample.value
        return None

    async def until_known(self) -> None:
        """Wait until the router knows a model."""
        await eventually(self._knows_a_model)

    async def _knows_a_model(self) -> bool:
        return bool((await self.stub.ListModels(pb.ListModelsRequest())).models)

    async def until_ready(self, replicas: int) -> None:
        """Wait until the router counts so many."""
        await eventually(lambda: self._has_ready(replicas))

    async def _has_ready(self, replicas: int) -> bool:
        return await self.num_ready() == replicas


@asynccontextmanager
async def running_router(registry: Registry, **settings: Any) -> AsyncIterator[Client]:
    """A router on free ports, drained at the end."""
    chosen: dict[str, Any] = {"grpc_port": 0, "http_port": 0, "drain_timeout_s": 5.0}
    router = Router(RouterSettings(**(chosen | settings)), registry)
    addresses = await router.start()
    told_to_stop = asyncio.Event()
    serving = asyncio.create_task(router.serve_until(told_to_stop))
    try:
        async with grpc.aio.insecure_channel(addresses["grpc"]) as channel:
            client = Client(channel, addresses, router.metrics)
            client.stop = told_to_stop.set
            yield client
    finally:
        told_to_stop.set()
        await serving


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something holds that nobody can be asked to announce."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.01)


def text_of(messages: Iterable[pb.GenerateResponse | pb.ChatResponse], index: int = 0) -> str:
    """The text of one sample."""
    return "".join(m.delta.text for m in messages if m.HasField("delta") and m.delta.index == index)


def tokens_of(
    messages: Iterable[pb.GenerateResponse | pb.ChatResponse], index: int = 0
) -> list[int]:
    """The tokens of one sample."""
    deltas = [m.delta for m in messages if m.HasField("delta")]
    return [token_id for d in deltas if d.index == index for token_id in d.token_ids]


def detail_of(error: grpc.aio.AioRpcError) -> pb.ErrorDetail:
    """What the error says to programs."""
    for key, value in error.trailing_metadata():
        if key == "trunkline-error-bin":
            assert isinstance(value, bytes)
            return pb.ErrorDetail.FromString(value)
    raise AssertionError(f"no error detail in {error}")
