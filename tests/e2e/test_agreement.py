"""One request has one answer: on every replica, in every dialect, online and offline."""

import asyncio
from dataclasses import dataclass

import pytest
from openai import OpenAI
from trunkline import AsyncClient, Client

from cluster.settings import EngineSettings
from ops.models import resolve
from tests.e2e.cluster import Cluster
from tests.e2e.settings import ENGINE
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams

MAX_TOKENS = 24
PROMPTS = ("The list type", "def main():\n    ", "import", "☃ naïve 🦀", "A" * 300)


@dataclass(frozen=True)
class Wish:
    """A request, in terms that every dialect has."""

    prompt: str
    temperature: float
    seed: int


WISHES = [Wish(prompt, 0.0, 0) for prompt in PROMPTS] + [
    Wish(prompt, 1.0, seed) for seed, prompt in enumerate(PROMPTS)
]


@pytest.fixture(scope="module")
def offline() -> list[str]:
    """What the engine says without a cluster."""
    llm = LLM(resolve("demo"), EngineSettings(**ENGINE))
    completions = llm.generate(
        [wish.prompt for wish in WISHES],
        [
            SamplingParams(temperature=wish.temperature, seed=wish.seed, max_tokens=MAX_TOKENS)
            for wish in WISHES
        ],
    )
    return [completion.samples[0].text for completion in completions]


def over_grpc(client: Client, wish: Wish) -> str:
    stream = client.generate(
        wish.prompt, temperature=wish.temperature, seed=wish.seed, max_tokens=MAX_TOKENS
    )
    return stream.text()


def over_http(openai: OpenAI, wish: Wish) -> str:
    completion = openai.completions.create(
        model="demo",
        prompt=wish.prompt,
        temperature=wish.temperature,
        seed=wish.seed,
        max_tokens=MAX_TOKENS,
    )
    return completion.choices[0].text


def test_online_and_offline_agree(client: Client, openai: OpenAI, offline: list[str]) -> None:
    assert [over_grpc(client, wish) for wish in WISHES] == offline
    assert [over_http(openai, wish) for wish in WISHES] == offline


async def test_replicas_agree(cluster: Cluster, offline: list[str]) -> None:
    """Of a prompt too short to be found cached, which goes to whoever has the least to do."""
    before = await cluster.metrics("generated_tokens")
    wish, expected = next(
        (w, text) for w, text in zip(WISHES, offline, strict=True) if w == Wish("import", 1.0, 2)
    )
    async with AsyncClient(cluster.grpc) as client:
        answers = await asyncio.gather(
            *(
                client.generate(wish.prompt, seed=wish.seed, max_tokens=MAX_TOKENS).text()
                for _ in range(8)
            )
        )
    assert set(answers) == {expected}
    after = await cluster.metrics("generated_tokens")
    assert all(new > old for old, new in zip(before, after, strict=True))


def test_samples_of_one_request_agree_in_both_dialects(client: Client, openai: OpenAI) -> None:
    texts = client.generate("The list type", n=3, seed=9, max_tokens=MAX_TOKENS).texts()
    completion = openai.completions.create(
        model="demo", prompt="The list type", n=3, seed=9, max_tokens=MAX_TOKENS
    )
    assert [choice.text for choice in completion.choices] == texts


def test_chats_agree_in_both_dialects(client: Client, openai: OpenAI) -> None:
    text = client.chat([{"role": "user", "content": "Hi!"}], seed=9, max_tokens=MAX_TOKENS).text()
    answer = openai.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "Hi!"}],
        seed=9,
        max_tokens=MAX_TOKENS,
    )
    assert answer.choices[0].message.content == text
