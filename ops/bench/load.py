"""Sends requests to a server and notes when its tokens come back."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol

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


class Target(Protocol):
    """A server under load."""

    async def model(self) -> str:
        """The name of a model that the server serves. Raises LoadError."""

    async def generate(
        self, model: str, prompt: list[int], output_tokens: int, on_tokens: Callable[[], None]
    ) -> int:
        """Ask for exactly `output_tokens` tokens and return how many came.

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


async def run_load(
    target: Target, model: str, prompts: list[list[int]], output_tokens: int, arrivals: Arrivals
) -> list[Exchange]:
    """Send all prompts, as `arrivals` paces them, and wait for all answers."""
    exchanges: list[Exchange] = []

    async def send(index: int, due_s: float) -> None:
        exchanges.append(await _exchange(target, model, prompts[index], output_tokens, due_s))

    await arrivals.drive(len(prompts), send)
    return exchanges


async def _exchange(
    target: Target, model: str, prompt: list[int], output_tokens: int, due_s: float
) -> Exchange:
    arrivals_s: list[float] = []
    num_tokens = 0
    error: LoadError | None = None
    try:
        num_tokens = await target.generate(
            model, prompt, output_tokens, lambda: arrivals_s.append(time.monotonic())
        )
        _check_answer(num_tokens, output_tokens, arrivals_s)
    except LoadError as failure:
        error = failure
    return Exchange(due_s, tuple(arrivals_s), time.monotonic(), num_tokens, error)


def _check_answer(num_tokens: int, output_tokens: int, arrivals_s: list[float]) -> None:
    if num_tokens != output_tokens:
        # Figures of answers of another length would compare unlike things.
        raise LoadError("WRONG_LENGTH", f"{num_tokens} tokens came, {output_tokens} were asked for")
    if not arrivals_s:
        raise LoadError("NO_TEXT", "tokens came, but no text")
