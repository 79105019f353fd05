"""What a prompt would cost at a simulated engine, found by going through the steps to come."""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from ops.simulate.profile import EngineProfile
from ops.simulate.sequence import SimulatedSequence

_FIRST_TOKENS = 16
"""Output tokens by which running decodes are felt, as router.fleet.load_estimate has it."""


class Cost(NamedTuple):
    """In seconds."""

    first_token_s: float
    work_s: float
    """Its own part of the steps, which others wait for."""
    decode_s: float
    """Its first tokens' steps, which it shares with others."""
    cached_tokens: int
    """That it would find."""

    @property
    def total_s(self) -> float:
        """What router.policies.prefix minimizes."""
        return self.first_token_s + self.work_s + self.decode_s


class Forecast:
    """The steps to come, with nothing but what is there now and one prompt after it."""

    def __init__(
        self,
        profile: EngineProfile,
        match: Callable[[Sequence[bytes]], int],
        *,
        num_decodes: int,
        computing: Iterable[tuple[SimulatedSequence, int]],
        waiting: Iterable[SimulatedSequence],
    ) -> None:
        """`match` says how many first blocks are cached. Of the sequences in `computing` so many
        tokens are, or will be at the end of the step that goes on."""
        self._profile = profile
        self._match = match
        self._num_decodes = num_decodes
        self._filled: list[Sequence[bytes]] = []
        self._computing = deque[tuple[SimulatedSequence, int]]()
        for sequence, num_computed in computing:
            self._note(sequence, num_computed)
            if num_computed < sequence.num_prompt_tokens:
                self._computing.append((sequence, num_computed))
        self._waiting = deque(waiting)

    def cost(self, num_prompt_tokens: int, hashes: Sequence[bytes]) -> Cost:
        """Of a prompt, by the names of the blocks that it may take from others."""
        first_token_s = work_s = 0.0
        cached = computed = -1
        while computed < num_prompt_tokens:
            step_s, budget, done = self._others()
            if budget > 0:
                if computed < 0:
                    cached = computed = self._depth(hashes) * self._profile.block_size
                end = min(num_prompt_tokens, computed + budget)
                own_s = self._profile.prefill_s(computed, end)
                computed = end
                work_s, step_s = work_s + own_s, step_s + own_s
            first_token_s += self._profile.step_s(step_s, self._num_decodes)
            for sequence, num_computed in done:
                self._note(sequence, num_computed)
        decode_s = _FIRST_TOKENS * self._profile.decode_s(self._num_decodes + 1)
        return Cost(first_token_s, work_s, decode_s, cached)

    def _others(self) -> tuple[float, int, list[tuple[SimulatedSequence, int]]]:
        """Of a step: the time of others' prompts, the budget that is left, and what is computed."""
        budget = max(1, self._profile.max_num_batched_tokens - self._num_decodes)
        seconds, done = 0.0, []
        while budget and (self._computing or self._waiting):
            if self._computing:
                sequence, start = self._computing.popleft()
            else:
                sequence = self._waiting.popleft()
                hashes = sequence.usable_hashes(self._profile.block_size)
                start = self._depth(hashes) * self._profile.block_size
            end = min(sequence.num_prompt_tokens, start + budget)
            seconds += self._profile.prefill_s(start, end)
            budget -= end - start
            done.append((sequence, end))
            if end < sequence.num_prompt_tokens:
                self._computing.appendleft((sequence, end))
        return seconds, budget, done

    def _note(self, sequence: SimulatedSequence, num_computed: int) -> None:
        self._filled.append(sequence.hashes[: num_computed // self._profile.block_size])
        self._num_decodes += num_computed == sequence.num_prompt_tokens

    def _depth(self, hashes: Sequence[bytes]) -> int:
        """Blocks found at the beginning of a step."""
        return max([self._match(hashes), *(_common(hashes, other) for other in self._filled)])


def _common(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """First blocks that are the same: names are chained, so that none is after one that is not."""
    shorter = min(len(one), len(other))
    return bisect_left(range(shorter), True, key=lambda i: one[i] != other[i])
