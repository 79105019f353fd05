"""Sends requests to a server and notes when its tokens come back."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, Protocol

from ops.bench.load_arrivals import Arrivals


@dataclass(frozen=True, slots=True)
class Work:
    """Requests with random prompts and outputs of fixed length."""

    requests: int
    prompt_tokens: int
    output_tokens: int
    vocab_size: int = 1000
    """Prompts draw their token ids below this."""

    def prompts(self, seed: str) -> list[list[int]]:
        """Token ids, other ones for each seed, so that no run finds the last one's prefixes."""
        random = Random(seed)
        ids = range(self.vocab_size)
        return [random.choices(ids, k=self.prompt_tokens) for _ in range(self.requests)]

    def __str__(self) -> str:
        return f"{self.requests} x ({self.prompt_tokens} + {self.output_tokens})"


class LoadError(Exception):
    """A request that failed; `kind` is a short word that failures are counted by."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


class Answer(NamedTuple):
    """What a server has said at the end."""

    num_tokens: int
    token_ids: Sequence[int] = ()
    """None, if the server tells only how many they were."""
    cached_tokens: int | None = None
    """Prompt tokens that it did not have to compute; None if it does not say."""


class Target(Protocol):
    """A server under load."""

    async def model(self) -> str:
        """The name of a model that the server serves. Raises LoadError."""

    async def generate(
        self,
        model: str,
        prompt: list[int],
        output_tokens: int,
        on_tokens: Callable[[], None],
        session_id: str = "",
    ) -> Answer:
        """Ask for exactly `output_tokens` tokens.

        Calls `on_tokens` whenever some arrive. Raises LoadError.
        """

    async def close(self) -> None:
        """Give up the connections."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and what came of it; times are of one monotonic clock."""

    sent_s: float
    """When it was due, which under an open loop may be before it was sent."""
    arrivals_s: tuple[float, ...]
    """When tokens came, one or several each time."""
    ended_s: float
    num_tokens: int
    error: LoadError | None = None
    num_prompt_tokens: int = 0
    cached_tokens: int | None = None
    """Of the prompt; None if the server does not say."""


async def run_load(
    target: Target, model: str, prompts: list[list[int]], output_tokens: int, arrivals: Arrivals
) -> list[Exchange]:
    """Send all prompts, as `arrivals` paces them, and wait for all answers."""
    exchanges: list[Exchange] = []

    async def send(index: int, due_s: float) -> None:
        exchange, _ = await ask(target, model, prompts[index], output_tokens, due_s)
        exchanges.append(exchange)

    await arrivals.drive(len(prompts), send)
    return exchanges


async def ask(
    target: Target,
    model: str,
    prompt: list[int],
    output_tokens: int,
    due_s: float,
    session_id: str = "",
) -> tuple[Exchange, Answer]:
    """Send one request, which was due at `due_s`, and wait for its answer."""
    arrivals_s: list[float] = []
    answer = Answer(0)
    error: LoadError | None = None
    try:
        answer = await target.generate(
            model, prompt, output_tokens, lambda: arrivals_s.append(time.monotonic()), session_id
        )
        _check_answer(answer.num_tokens, output_tokens, arrivals_s)
    except LoadError as failure:
        error = failure
    exchange = Exchange(
        due_s,
        tuple(arrivals_s),
        time.monotonic(),
        answer.num_tokens,
        error,
        len(prompt),
        answer.cached_tokens,
    )
    return exchange, answer


def _check_answer(num_tokens: int, output_tokens: int, arrivals_s: list[float]) -> None:
    if num_tokens != output_tokens:
        # Figures of answers of another length would compare unlike things.
        raise LoadError("WRONG_LENGTH", f"{num_tokens} tokens came, {output_tokens} were asked for")
    if not arrivals_s:
        raise LoadError("NO_TEXT", "tokens came, but no text")
