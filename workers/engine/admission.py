"""Whether one more request fits beside those that run, looking ahead to their longest moment."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from workers.engine.kv_blocks import KVBlocks
from workers.engine.output_length import OutputLength
from workers.engine.sequence import Sequence

_HEADROOM = 0.02
"""Share of the cache kept free for predictions that were too low."""


class Future(NamedTuple):
    """What a sequence will do to the cache, blocks that it shares with others left out."""

    now: int
    """Blocks when its prompt is computed."""
    peak: int
    """Blocks at its longest."""
    remaining: int
    """Steps until then."""


class Forecast:
    """The use of blocks to come while sequences grow and end (the "future" of past-future
    scheduling, Gong et al. 2025)."""

    def __init__(self, futures: list[Future], num_shared: int, capacity: float) -> None:
        """`num_shared` blocks are held by several sequences and count once, and to the end."""
        self._futures = futures
        self._num_shared = num_shared
        self._capacity = capacity

    def fits(self, newcomers: list[Future]) -> bool:
        """Whether the cache suffices at every moment, if these are started now."""
        now, peak, remaining = np.array(self._futures + newcomers, dtype=np.float64).T
        # At the moment that a sequence ends, those that end no earlier have grown in proportion.
        order = np.argsort(-remaining)
        base, slope, ends = now[order], ((peak - now) / remaining)[order], remaining[order]
        use = base.cumsum() + slope.cumsum() * ends
        return bool(self._num_shared + use.max() <= self._capacity)

    def add(self, newcomers: list[Future]) -> None:
        """These were started."""
        self._futures += newcomers


class Admission:
    """Predicts the use of the cache, so that requests are admitted while its peak stays within
    and preemption is rare."""

    def __init__(self, blocks: KVBlocks, lengths: OutputLength, step_tokens: int) -> None:
        self._blocks = blocks
        self._lengths = lengths
        self._step_tokens = step_tokens

    def forecast(self, running: Iterable[Sequence]) -> Forecast:
        """What the running sequences will use, with the samples still to be forked from them."""
        futures: list[Future] = []
        num_alone = 0
        for sequence in running:
            shared = self._blocks.num_shared(sequence)
            num_alone += len(sequence.block_table) - sequence.num_window_freed - shared
            futures += self._futures(sequence, shared)
        pool = self._blocks.pool
        num_shared = max(0, pool.num_blocks - pool.num_available - num_alone)
        return Forecast(futures, num_shared, pool.num_blocks * (1.0 - _HEADROOM))

    def futures(self, sequence: Sequence) -> list[Future]:
        """Of the sequence and the samples that will be forked from it."""
        return self._futures(sequence, self._blocks.num_shared(sequence))

    def _futures(self, sequence: Sequence, shared: int) -> list[Future]:
        length, remaining = len(sequence.token_ids), self._lengths.remaining(sequence)
        now = self._blocks.peak_blocks(length, self._step_tokens)
        peak = self._blocks.peak_blocks(length + remaining, self._step_tokens)
        own = Future(max(0, now - shared), max(0, peak - shared), remaining)
        if sequence.group.is_forked:
            return [own]
        shared = self._blocks.num_shareable(length)
        forked = Future(max(0, now - shared), max(0, peak - shared), remaining)
        return [own, *[forked] * (sequence.group.request.params.n - 1)]
