"""An engine whose steps take as long as a profile says, and whose blocks are real.

It batches as workers.engine.scheduler does: one budget of tokens per step, decodes first, then
prompts that are begun, then those that wait, in order of arrival. Blocks for prompt and answer are
taken at the start, so that nothing is preempted; nothing is computed, and hits end with a block.
"""

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil
from typing import NamedTuple

from trunkline.internal.v1 import replica_pb2 as internal

from cluster.prefix.events import CacheEvent
from ops.simulate.forecast import Cost, Forecast
from ops.simulate.profile import EngineProfile
from ops.simulate.sequence import SimulatedSequence
from ops.simulate.virtual_time import VirtualTime
from workers.engine.block_pool import BlockPool
from workers.engine.rates import Rates


class _Step(NamedTuple):
    """One step, or several equal ones of decodes only."""

    began_s: float
    each_s: float
    num: int
    decodes: Sequence[SimulatedSequence]
    prefills: Sequence[tuple[SimulatedSequence, int]]
    """And how many tokens of each."""

    @property
    def end_s(self) -> float:
        return self.began_s + self.num * self.each_s


class SimulatedEngine:
    """Serves sequences in virtual time."""

    def __init__(
        self,
        time: VirtualTime,
        profile: EngineProfile,
        on_events: Callable[[Sequence[CacheEvent]], None],
    ) -> None:
        """`on_events` is told what is cached, after each step that changed it."""
        self.busy_s = 0.0
        self.num_requests = 0
        self._time = time
        self._profile = profile
        self._on_events = on_events
        self._pool = BlockPool(profile.num_blocks + 1)
        self._pool.listen()
        self._rates = Rates()
        self._waiting: deque[SimulatedSequence] = deque()
        self._running: list[SimulatedSequence] = []
        self._is_short = False
        """Whether the first of those that wait needs more blocks than there are."""
        self._step: _Step | None = None

    def submit(self, sequence: SimulatedSequence) -> None:
        """Take a request. Raises ValueError for one that the cache can never hold."""
        needed = self._blocks_for(sequence)
        if needed > self._pool.num_blocks:
            raise ValueError(
                f"a request needs {needed} blocks, the profile has {self._pool.num_blocks}"
            )
        self.num_requests += 1
        self._waiting.append(sequence)
        if self._step is None:
            self._begin()
        elif self._step.num > 1:
            self._shorten(self._step)

    def load(self) -> internal.Load:
        """Its report, as workers.engine.engine makes it."""
        uncomputed = sum(s.num_uncomputed for s in self._running if s.num_uncomputed > 1)
        return internal.Load(
            running_sequences=len(self._running),
            waiting_requests=len(self._waiting),
            queued_prefill_tokens=uncomputed + sum(s.num_prompt_tokens for s in self._waiting),
            free_blocks=self._pool.num_available,
            total_blocks=self._pool.num_blocks,
            prefill_tokens_per_s=self._rates.prefill_tokens_per_s,
            decode_tokens_per_s=self._rates.decode_tokens_per_s,
            max_running_sequences=self._profile.max_num_seqs,
        )

    def cost(self, num_prompt_tokens: int, hashes: Sequence[bytes]) -> Cost:
        """What a prompt would cost here now, by the names of the blocks that it may take from
        others; nothing that routers know only in part is hidden from it."""
        in_step = dict(self._step.prefills) if self._step is not None else {}
        forecast = Forecast(
            self._profile,
            lambda wanted: len(self._pool.match(wanted)),
            num_decodes=sum(not sequence.num_uncomputed for sequence in self._running),
            computing=[
                (sequence, sequence.num_computed + in_step.get(sequence, 0))
                for sequence in self._running
                if sequence.num_uncomputed
            ],
            waiting=self._waiting,
        )
        cost = forecast.cost(num_prompt_tokens, hashes)
        wait_s = self._step_left_s + self._place_s()
        return cost._replace(first_token_s=wait_s + cost.first_token_s)

    @property
    def _step_left_s(self) -> float:
        """Until the step that goes on can be followed by another one."""
        if self._step is None:
            return 0.0
        passed_s = self._time.now() - self._step.began_s
        return self._step.each_s - passed_s % self._step.each_s

    def _place_s(self) -> float:
        """About how long one more waits until enough others have ended."""
        is_full = len(self._running) >= self._profile.max_num_seqs
        if not (is_full or (self._waiting and self._is_short)):
            return 0.0
        left = sorted(s.output_tokens - s.num_generated for s in self._running)
        ends = left[: len(self._waiting) + 1]
        return (ends[-1] if ends else 0) * self._profile.decode_s(max(1, len(self._running)))

    def _blocks_for(self, sequence: SimulatedSequence) -> int:
        return ceil(
            (sequence.num_prompt_tokens + sequence.output_tokens) / self._profile.block_size
        )

    def _begin(self) -> None:
        """Begin the next step, if there is anything to do."""
        profile, budget = self._profile, self._profile.max_num_batched_tokens
        decodes = [s for s in self._running if not s.num_uncomputed][:budget]
        budget -= len(decodes)
        prefills: list[tuple[SimulatedSequence, int]] = []
        for sequence in self._running:
            if sequence.num_uncomputed and budget:
                prefills.append((sequence, min(sequence.num_uncomputed, budget)))
                budget -= prefills[-1][1]
        while self._waiting and budget and self._start(self._waiting[0]):
            sequence = self._waiting.popleft()
            self._running.append(sequence)
            prefills.append((sequence, min(sequence.num_uncomputed, budget)))
            budget -= prefills[-1][1]
        if not self._running:
            return
        prompts_s = sum(profile.prefill_s(s.num_computed, s.num_computed + n) for s, n in prefills)
        each_s = profile.step_s(prompts_s, len(decodes))
        num = 1 if prefills else min(s.output_tokens - s.num_generated for s in decodes)
        self._run(_Step(self._time.now(), each_s, num, decodes, prefills))

    def _run(self, step: _Step) -> None:
        self._step = step
        self._time.at(step.end_s, lambda: self._end(step))

    def _shorten(self, step: _Step) -> None:
        """End after the step that is going on: somebody has come."""
        passed = ceil((self._time.now() - step.began_s) / step.each_s)
        self._run(step._replace(num=min(max(1, passed), step.num)))

    def _end(self, step: _Step) -> None:
        if self._step is not step:  # it was shortened
            return
        self.busy_s += step.num * step.each_s
        num_prefill = sum(tokens for _, tokens in step.prefills)
        for _ in range(step.num):
            self._rates.observe(num_prefill, len(step.decodes), step.each_s)
        for sequence, tokens in step.prefills:
            sequence.num_computed += tokens
            self._register(sequence, sequence.num_computed)
            if not sequence.num_uncomputed:
                sequence.num_generated = 1
                sequence.on_first_token()
        for sequence in step.decodes:
            sequence.num_generated += step.num
        for sequence in [s for s in self._running if s.num_generated == s.output_tokens]:
            self._finish(sequence)
        if events := self._pool.take_events():
            self._on_events(events)
        self._step = None
        self._begin()

    def _start(self, sequence: SimulatedSequence) -> bool:
        """Give a sequence that waits its blocks; False if there is no room for it now."""
        if len(self._running) >= self._profile.max_num_seqs:
            return False
        pool, size = self._pool, self._profile.block_size
        found = pool.match(sequence.usable_hashes(size))
        pool.hold(found)
        missing = self._blocks_for(sequence) - len(found)
        self._is_short = missing > pool.num_available
        if self._is_short:
            pool.release(found)
            return False
        sequence.blocks = found + [pool.allocate() for _ in range(missing)]
        sequence.num_registered = len(found)
        sequence.cached_tokens = sequence.num_computed = len(found) * size
        return True

    def _register(self, sequence: SimulatedSequence, num_tokens: int) -> None:
        """Let others find the blocks of the first so many tokens."""
        blocks, end = sequence.blocks, num_tokens // self._profile.block_size
        for i in range(sequence.num_registered, end):
            parent = blocks[i - 1] if i else None
            blocks[i] = self._pool.register(blocks[i], sequence.hashes[i], parent)
        sequence.num_registered = max(sequence.num_registered, end)

    def _finish(self, sequence: SimulatedSequence) -> None:
        # The last token is never computed: nobody needs what follows it.
        self._register(sequence, sequence.num_prompt_tokens + sequence.output_tokens - 1)
        self._pool.release(sequence.blocks)
        self._running.remove(sequence)
        sequence.on_end()
