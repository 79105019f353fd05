"""Both kinds of servers, over real connections: tokens are counted and failures named."""

from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from trunkline.v1 import inference_pb2 as pb

from ops.bench.load import LoadError, Target
from ops.bench.load_grpc import GrpcTarget
from ops.bench.load_openai import OpenAITarget
from ops.bench.serve import open_target
from tests.ops.bench import fake_openai
from tests.ops.bench.fake_openai import FakeOpenAI
from tests.proto import fake_inference
from tests.proto.fake_inference import Failure, FakeInference


@pytest.fixture
def inference() -> FakeInference:
    return FakeInference()


@pytest.fixture
async def grpc_target(inference: FakeInference) -> AsyncIterator[Target]:
    with fake_inference.serve(inference) as address:
        async with open_target(address, api_key="secret", timeout_s=60) as target:
            assert isinstance(target, GrpcTarget)
            yield target


@pytest.fixture
def openai() -> FakeOpenAI:
    return FakeOpenAI()


@pytest.fixture
def openai_url(openai: FakeOpenAI) -> Iterator[str]:
    with fake_openai.serve(openai) as url:
        yield url


@pytest.fixture
async def openai_target(openai_url: str) -> AsyncIterator[Target]:
    async with open_target(openai_url, api_key="secret", timeout_s=60) as target:
        assert isinstance(target, OpenAITarget)
        yield target


async def ask(target: Target, prompt: list[int], output_tokens: int) -> tuple[int, int]:
    """Tokens that came, and how often some did."""
    arrivals: list[None] = []
    answer = await target.generate(
        await target.model(), prompt, output_tokens, lambda: arrivals.append(None)
    )
    return answer.num_tokens, len(arrivals)


async def test_grpc_counts_tokens_as_they_come(
    inference: FakeInference, grpc_target: Target
) -> None:
    assert await ask(grpc_target, [7, 8, 9], 12) == (12, 12)
    (request,) = inference.generations
    assert (request.model, list(request.token_ids.ids)) == ("fake", [7, 8, 9])
    assert request.options.stop.max_tokens == 12
    assert request.options.stop.ignore_eos
    assert inference.headers[-1]["authorization"] == "Bearer secret"


async def test_grpc_failures_are_named_by_their_reason_and_not_retried(
    inference: FakeInference, grpc_target: Target
) -> None:
    model = await grpc_target.model()
    refusal = pb.ErrorDetail(reason="QUEUE_FULL", message="full")
    refusal.retry_after.FromMilliseconds(1)
    inference.failures = [Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, refusal)]
    with pytest.raises(LoadError, match="QUEUE_FULL: full") as caught:
        await grpc_target.generate(model, [1], 3, lambda: None)
    assert caught.value.kind == "QUEUE_FULL"
    assert len(inference.generations) == 1


async def test_openai_counts_tokens_as_they_come(openai: FakeOpenAI, openai_target: Target) -> None:
    prompt = [fake_openai.WELL, 8, 9]
    assert await ask(openai_target, prompt, 12) == (12, 12)
    (body,) = openai.bodies
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("fake", prompt, 12)
    assert body["ignore_eos"] is True
    assert openai.keys == ["Bearer secret"]


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (fake_openai.BUSY, "HTTP_429"),
        (fake_openai.CUT_OFF, "CUT_OFF"),
        (fake_openai.ERROR_EVENT, "ERROR_EVENT"),
        (fake_openai.GIBBERISH, "NOT_OPENAI"),
    ],
)
async def test_openai_failures_are_named(openai_target: Target, how: int, kind: str) -> None:
    with pytest.raises(LoadError) as caught:
        await ask(openai_target, [how], 3)
    assert caught.value.kind == kind


async def test_openai_events_without_text_are_no_arrivals_at_the_end(
    openai_target: Target,
) -> None:
    """An event that only says why the sample ended brings no tokens."""
    assert await ask(openai_target, [fake_openai.SILENT], 3) == (3, 2)


async def test_an_unreachable_server_is_named(openai_url: str) -> None:
    nowhere = openai_url.rpartition(":")[0] + ":1/v1"
    async with open_target(nowhere, api_key=None, timeout_s=60) as target:
        with pytest.raises(LoadError, match="ConnectError"):
            await target.model()
