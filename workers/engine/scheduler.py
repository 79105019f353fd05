"""Which tokens the next step computes.

There is no prefill phase and no decode phase: every sequence has tokens whose KV is not computed
yet, one while decoding and many while its prompt is read, and a step spends one token budget on
them. Chunked prefill, prefix hits and recomputation after preemption are the same rule.
"""

import heapq
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

from workers.engine.admission import Admission, Forecast
from workers.engine.batch import Batch, Chunk
from workers.engine.kv_blocks import KVBlocks
from workers.engine.output_length import OutputLength
from workers.engine.rates import Rates
from workers.engine.sequence import LoadedTokens, RequestGroup, Sequence

_Rank = tuple[int, float, int, int]

_YIELDING_STEP_S = 0.02
"""About how long a step takes that reads prompts of requests that yield: whoever comes meanwhile
waits for its end."""
_LEAST_YIELDING_TOKENS = 16
"""Of such prompts, however long a step takes."""


class Fetches(Protocol):
    """Prefixes that come from elsewhere while others are served; see RedisTier."""

    def begin(self, sequence: Sequence) -> bool:
        """Whether a new sequence is to wait until `arrived` names it."""

    def arrived(self) -> list[Sequence]:
        """The sequences that need not wait any more."""

    def leave(self, sequence: Sequence) -> None:
        """A sequence that waits has ended."""


class Scheduler:
    """Orders requests by priority, then arrival; decodes go before prefills within a step.

    Requests that yield make way for the others: they come after these, though not for ever, a step
    reads little of their prompts, and where there is no place but theirs, the last of them rest:
    they keep their blocks and are in no step.

    Blocks are taken as needed. If they run short, sequences first give back what their sliding
    window has left, then the lowest-ranking one is preempted: it gives back everything, waits at
    its old rank and is recomputed later.
    """

    def __init__(
        self,
        blocks: KVBlocks,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        num_in_flight: int = 1,
        fetches: Fetches | None = None,
        rates: Rates | None = None,
    ) -> None:
        """The steps in flight at a time share the running sequences and the token budget. `rates`
        tell how long prompts take."""
        self.blocks = blocks
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self.output_length = OutputLength()
        self._max_num_seqs = max_num_seqs
        self._num_in_flight = num_in_flight
        self._step_tokens = max(1, max_num_batched_tokens // num_in_flight)
        self._admission = Admission(blocks, self.output_length, max_num_batched_tokens)
        self._waiting: list[tuple[_Rank, Sequence]] = []
        self._waiting_tokens = 0
        self._rates = rates or Rates()
        self._fetches = fetches
        self._fetching: set[Sequence] = set()
        """Those that wait for their prefix, so that others go before them."""
        self._blocked: Sequence | None = None
        """The first to wait, if it had no place and nobody has left since."""

    @property
    def num_waiting(self) -> int:
        """Sequences that wait."""
        return len(self._waiting) + len(self._fetching)

    @property
    def num_fetching(self) -> int:
        """Those of them that could not be started yet, as their prefix is on its way."""
        return len(self._fetching)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens not yet computed, of running and waiting sequences."""
        uncomputed = (sequence.num_uncomputed for sequence in self.running)
        return self._waiting_tokens + sum(tokens for tokens in uncomputed if tokens > 1)

    def waiting(self) -> Iterator[Sequence]:
        """The sequences that wait, in no particular order."""
        return chain((sequence for _, sequence in self._waiting), self._fetching)

    def add(self, group: RequestGroup) -> None:
        """Queue a request; its first sample will read the prompt."""
        sequence = Sequence(group, group.request.first_index)
        group.live.append(sequence)
        if self._fetches is not None and may_share(sequence) and self._fetches.begin(sequence):
            self._fetching.add(sequence)
            self._waiting_tokens += len(sequence.token_ids)
        else:
            self._wait(sequence)

    def fork(self, parent: Sequence, index: int) -> Sequence:
        """Start another sample of the request, which shares all that `parent` has so far."""
        child = Sequence(parent.group, index)
        self.blocks.fork(parent, child)
        parent.group.live.append(child)
        self.running.append(child)
        return child

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that has ended, wherever it is, and release its blocks."""
        self._blocked = None
        self.blocks.release(sequence)
        sequence.group.live.remove(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self._fetching:
            self._end_fetching(sequence)
            if self._fetches is not None:
                self._fetches.leave(sequence)
        else:
            self._waiting = [entry for entry in self._waiting if entry[1] is not sequence]
            self._waiting_tokens -= len(sequence.token_ids)
            heapq.heapify(self._waiting)

    def schedule(self) -> Batch:
        """The next step; a sequence is in it at most once.

        Empty only if nothing waits or runs, or if all that could be computed is in flight.
        """
        if self._fetching and self._fetches is not None:
            for sequence in self._fetches.arrived():
                self._end_fetching(sequence)
                self._wait(sequence)
        self.running.sort(key=_rank)
        batch = Batch()
        active = self.running[: self._max_num_seqs]
        share = -(-len(active) // self._num_in_flight)
        for sequence in [s for s in active if s.num_unscheduled == 1]:
            if len(batch.chunks) == share or batch.num_tokens == self._step_tokens:
                break
            # Without blocks, it was preempted in favour of one before it.
            if sequence.block_table and self._make_room(sequence, 1, batch):
                self._take(sequence, 1, batch)
        for sequence in [s for s in active if s.num_unscheduled > 1]:
            if _reads_yielding_prompt(sequence):
                self._start_waiting(batch, before=_rank(sequence))
            if len(batch.chunks) >= share:
                break
            num_tokens = self._next_tokens(sequence, batch)
            if num_tokens and sequence.block_table and self._make_room(sequence, num_tokens, batch):
                self._take(sequence, num_tokens, batch)
        self._start_waiting(batch)
        self._hand_out(batch)
        return batch

    def _next_tokens(self, sequence: Sequence, batch: Batch) -> int:
        """How many tokens of the sequence the step may compute."""
        most = self._step_tokens - batch.num_tokens
        if _reads_yielding_prompt(sequence):
            most = min(most, self._yielding_tokens - batch.num_prompt_tokens)
        return max(0, min(sequence.num_unscheduled, most))

    @property
    def _yielding_tokens(self) -> int:
        """Prompt tokens after which a step reads no more of those that yield."""
        rate = self._rates.prefill_tokens_per_s
        if not rate:
            return self._step_tokens
        return max(_LEAST_YIELDING_TOKENS, int(rate * _YIELDING_STEP_S))

    def _hand_out(self, batch: Batch) -> None:
        """The batch is complete: what it is about to compute is not planned again."""
        for chunk in batch.chunks:
            chunk.sequence.num_scheduled = chunk.end
        if batch.chunks:
            batch.cleared = self.blocks.take_unclean()
            batch.saves, batch.loads = self.blocks.hand_out_transfers()

    def _start_waiting(self, batch: Batch, before: _Rank | None = None) -> None:
        """Let those that wait run, in order, until one may not; if asked, only those with a rank
        before another one's."""
        if not self._waiting or (self.running and self._waiting[0][1] is self._blocked):
            return
        forecast: Forecast | None = None
        while self._waiting:
            rank, sequence = self._waiting[0]
            if (before and rank > before) or not self._next_tokens(sequence, batch):
                return
            forecast = forecast or self._admission.forecast(self.running)
            if not self._start(sequence, forecast, batch):
                self._blocked = sequence
                return

    def _start(self, sequence: Sequence, forecast: Forecast, batch: Batch) -> bool:
        """Let the first of those that wait run, if it may."""
        if not self._has_place(sequence):
            return False
        group = sequence.group
        is_shared = may_share(sequence)
        if is_shared:
            self.blocks.adopt_prefix(sequence)
        futures = self._admission.futures(sequence)
        fits = not self.running or forecast.fits(futures)
        loaded = self.blocks.load_prefix(sequence) if fits and is_shared else LoadedTokens()
        num_tokens = self._next_tokens(sequence, batch)
        if fits and self._is_short(sequence, num_tokens):
            self.blocks.release_behind_window(sequence)
        if not fits or self._is_short(sequence, num_tokens):
            self.blocks.release(sequence)
            return False
        forecast.add(futures)
        if not group.is_started:
            group.cached_prompt_tokens = sequence.num_computed
            group.loaded_tokens = loaded
        heapq.heappop(self._waiting)
        self._waiting_tokens -= len(sequence.token_ids)
        self.running.append(sequence)
        self._take(sequence, num_tokens, batch)
        return True

    def _has_place(self, sequence: Sequence) -> bool:
        """Whether it may run beside the others, or beside those that do not rest for it."""
        if not self.running:
            return True
        others: Iterable[Sequence] = self.running
        if not sequence.group.request.yields:
            rank = _rank(sequence)
            others = (s for s in others if not s.group.request.yields or _rank(s) < rank)
        places = sum(_places(other.group) for other in others) + _places(sequence.group)
        return places <= self._max_num_seqs

    def _is_short(self, sequence: Sequence, num_tokens: int) -> bool:
        return self.blocks.blocks_needed(sequence, num_tokens) > self.blocks.pool.num_available

    def _take(self, sequence: Sequence, num_tokens: int, batch: Batch) -> None:
        copy = self.blocks.extend(sequence, num_tokens)
        batch.add(Chunk.next_of(sequence, num_tokens), copy)

    def _make_room(self, sequence: Sequence, num_tokens: int, batch: Batch) -> bool:
        """Free the blocks that the sequence needs; False if it had to yield to others itself."""
        if not self._is_short(sequence, num_tokens):
            return True
        for other in self.running:
            self.blocks.release_behind_window(other)
        while self._is_short(sequence, num_tokens):
            victim = max(self.running, key=_rank)
            self._preempt(victim, batch)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence, batch: Batch) -> None:
        self.num_preemptions += 1
        self._blocked = None
        batch.drop(sequence)
        self.running.remove(sequence)
        self.blocks.release(sequence)
        self._wait(sequence)

    def _end_fetching(self, sequence: Sequence) -> None:
        self._fetching.remove(sequence)
        self._waiting_tokens -= len(sequence.token_ids)

    def _wait(self, sequence: Sequence) -> None:
        heapq.heappush(self._waiting, (_rank(sequence), sequence))
        self._waiting_tokens += len(sequence.token_ids)


def _reads_yielding_prompt(sequence: Sequence) -> bool:
    return sequence.group.request.yields and sequence.num_unscheduled > 1


def _rank(sequence: Sequence) -> _Rank:
    return (*sequence.group.order, sequence.index)


def may_share(sequence: Sequence) -> bool:
    """Whether the sequence may take its prefix from others: not if each token's logits are asked
    for, nor if its embedding is. The cache keeps keys and values, not hidden states."""
    request = sequence.group.request
    wants_all_rows = request.embed or request.params.prompt_top_logprobs is not None
    return not wants_all_rows or sequence.num_output > 0


def _places(group: RequestGroup) -> int:
    """Sequences that the request's next sequence stands for: all its samples before the fork."""
    return 1 if group.is_forked else group.request.params.n
