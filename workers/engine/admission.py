"""Whether one more request fits beside those that run, looking ahead to their longest moment."""

from collections.abc import Iterable

import numpy as np

from workers.engine.kv_blocks import KVBlocks
from workers.engine.output_length import OutputLength
from workers.engine.sequence import Sequence

_HEADROOM = 0.02
"""Share of the cache kept free for predictions that were too low."""


class Admission:
    """Admits while the predicted peak of block use stays within the cache, so that preemption is
    rare. The peak is taken over the moments at which sequences end (the "future" of past-future
    scheduling, Gong et al. 2025)."""

    def __init__(self, blocks: KVBlocks, lengths: OutputLength, step_tokens: int) -> None:
        self._blocks = blocks
        self._lengths = lengths
        self._step_tokens = step_tokens

    def fits(self, newcomer: Sequence, running: Iterable[Sequence]) -> bool:
        """Whether the newcomer, and the samples that will be forked from it, can be started now."""
        futures = [self._future(sequence) for sequence in running]
        group = newcomer.group
        samples = 1 if group.is_forked else group.request.params.n
        futures.extend([self._future(newcomer)] * samples)
        now, peak, remaining = (np.array(column) for column in zip(*futures, strict=True))
        # At the moment that a sequence ends, those that end no earlier have grown in proportion.
        ends = np.unique(remaining)[:, None]
        use = np.where(remaining >= ends, now + (peak - now) / remaining * ends, 0.0).sum(axis=1)
        return bool(use.max() <= self._blocks.pool.num_blocks * (1.0 - _HEADROOM))

    def _future(self, sequence: Sequence) -> tuple[int, int, int]:
        """(blocks when its prompt is computed, blocks at its longest, steps until then)."""
        remaining = self._lengths.remaining(sequence)
        length = len(sequence.token_ids)
        return (
            self._blocks.peak_blocks(length, self._step_tokens),
            self._blocks.peak_blocks(length + remaining, self._step_tokens),
            remaining,
        )
