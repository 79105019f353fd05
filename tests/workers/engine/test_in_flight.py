"""Several steps in flight: every request gets what it gets when steps are done one by one."""

from collections import defaultdict
from dataclasses import dataclass
from itertools import cycle
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.prefix.events import CacheChange
from tests.workers.engine.paper_model import POISON, STOP, PaperModel, PaperRunner
from workers.engine.batch import Batch
from workers.engine.block_pool import BlockPool
from workers.engine.bookkeeper import Bookkeeper
from workers.engine.host_tier import HostTier
from workers.engine.in_flight import InFlight
from workers.engine.kv_blocks import KVBlocks
from workers.engine.request import FinishReason, Request, SampleOutput, TokenLogprob
from workers.engine.sampling_params import SamplingParams
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import RequestGroup, Sequence
from workers.engine.stats import Stats

BLOCK = 4
SEQS = 6


@dataclass(frozen=True)
class Wish:
    prompt: list[int]
    output: int
    arrives: int
    n: int = 1
    priority: int = 0
    wants_logprobs: bool = False
    leaves: Literal["cancel", "deadline"] | None = None
    after: int = 0

    @property
    def is_bad(self) -> bool:
        return POISON in self.prompt


PROMPTS = st.lists(st.integers(1, 2), min_size=1, max_size=40)
BAD_PROMPTS = st.builds(lambda before, after: [*before, POISON, *after], PROMPTS, PROMPTS)
WISHES = st.lists(
    st.builds(
        Wish,
        prompt=PROMPTS | PROMPTS | BAD_PROMPTS,
        output=st.integers(1, 24),
        arrives=st.integers(0, 20),
        n=st.sampled_from([1, 1, 2, 3]),
        priority=st.integers(-1, 1),
        wants_logprobs=st.sampled_from([False, False, True]),
        leaves=st.sampled_from([None, None, "cancel", "deadline"]),
        after=st.integers(0, 12),
    ),
    min_size=1,
    max_size=10,
)


class LateFetches:
    """Fetches that end after so many looks, or never begin; the delays are dealt out in turn."""

    def __init__(self, delays: list[int]) -> None:
        self._delays = cycle(delays)
        self._waiting: dict[Sequence, int] = {}

    def begin(self, sequence: Sequence) -> bool:
        delay = next(self._delays)
        if delay:
            self._waiting[sequence] = delay
        return delay > 0

    def arrived(self) -> list[Sequence]:
        self._waiting = {sequence: left - 1 for sequence, left in self._waiting.items()}
        ended = [sequence for sequence, left in self._waiting.items() if not left]
        for sequence in ended:
            self.leave(sequence)
        return ended

    def leave(self, sequence: Sequence) -> None:
        del self._waiting[sequence]


class House:
    """An engine without a model: what Engine.step does, with steps that are done late."""

    def __init__(
        self,
        num_in_flight: int,
        num_blocks: int = 200,
        budget: int = 32,
        window: int | None = None,
        *,
        misled: bool = False,
        num_slots: int = 0,
        delays: list[int] | None = None,
    ) -> None:
        self.model = PaperModel(window)
        self.budget = budget
        self.num_in_flight = num_in_flight
        stats = Stats()
        self.tiers = stats.tiers
        self.host = HostTier(num_slots, stats.tiers) if num_slots else None
        blocks = KVBlocks(
            BlockPool(num_blocks), BLOCK, share_prefixes=True, window=window, host=self.host
        )
        self.scheduler = Scheduler(
            blocks,
            max_num_seqs=SEQS,
            max_num_batched_tokens=budget,
            num_in_flight=num_in_flight,
            fetches=None if delays is None else LateFetches(delays),
        )
        blocks.listen()
        self.told: dict[bytes, CacheChange] = {}
        if misled:  # outputs seem to be short, so that more is started than has room
            for _ in range(20):
                self.scheduler.output_length.observe(1)
        runner = PaperRunner(self.model, num_blocks, BLOCK)
        self.in_flight = InFlight(self.scheduler, runner, stats.watch, num_in_flight)
        self.keeper = Bookkeeper(self.scheduler, stats, (STOP,))
        self.groups: dict[str, RequestGroup] = {}
        self.outputs: list[SampleOutput] = []

    def add(self, wish: Wish, number: int) -> None:
        params = SamplingParams(
            n=wish.n,
            max_tokens=wish.output,
            prompt_top_logprobs=0 if wish.wants_logprobs else None,
        )
        request = Request(str(number), wish.prompt, params, priority=wish.priority)
        group = RequestGroup(
            request, number, 0.0, max_output=wish.output, root_hash=b"", is_forked=wish.n == 1
        )
        self.groups[request.request_id] = group
        self.scheduler.add(group)

    def leave(self, wish: Wish, number: int) -> None:
        group = self.groups.get(str(number))
        if group is None:
            return
        for sequence in list(group.live):
            if wish.leaves == "cancel":
                self.scheduler.remove(sequence)
            else:
                self._tell(self.keeper.cut_off(sequence, FinishReason.DEADLINE))
        self.groups.pop(str(number), None)

    def step(self) -> Batch | None:
        self.in_flight.submit()
        assert len(self.in_flight) <= self.num_in_flight
        if not self.in_flight and self.scheduler.num_fetching == len(self.groups):
            return None
        assert self.in_flight, "somebody waits or runs, but nothing is in flight"
        batch, result = self.in_flight.collect()
        if self.host is not None:
            self.host.carried_out(batch.saves, batch.loads)
        assert batch.num_tokens <= max(1, self.budget // self.num_in_flight)
        self._tell(self.keeper.commit(batch, result))
        self.check_books()
        return batch

    def _tell(self, outputs: list[SampleOutput]) -> None:
        for output in outputs:
            assert output.request_id in self.groups, "an output of a request that has ended"
            self.outputs.append(output)
            if output.request_done:
                del self.groups[output.request_id]

    def check_books(self) -> None:
        live = [s for group in self.groups.values() for s in group.live]
        assert len(live) == len(self.scheduler.running) + self.scheduler.num_waiting
        assert len(self.scheduler.running) <= SEQS
        unread = [len(sequence.token_ids) for sequence in self.scheduler.waiting()]
        unread += [s.num_uncomputed for s in self.scheduler.running if s.num_uncomputed > 1]
        assert self.scheduler.queued_tokens == sum(unread)
        for sequence in live:
            assert sequence.num_computed <= sequence.num_scheduled <= len(sequence.token_ids)
        if self.host is not None:
            self.host.check_integrity()
        self._check_events()
        self.scheduler.blocks.pool.check_integrity([[n for n in s.block_table if n] for s in live])

    def _check_events(self) -> None:
        """What listeners are told of is what can be found, in the pool or in host memory only."""
        for change, hashes in self.scheduler.blocks.take_events():
            self.told.update(dict.fromkeys(hashes, change))
        kinds = CacheChange.STORED, CacheChange.LOWERED
        stored, lowered = ([h for h, last in self.told.items() if last is kind] for kind in kinds)
        pool = self.scheduler.blocks.pool
        assert pool.missing(stored) == []
        assert pool.num_cached == len(stored)
        assert pool.missing(lowered) == lowered
        if self.host is not None:
            assert all(self.host.num_found([block_hash]) for block_hash in lowered)
            num_copies = sum(self.host.num_found([block_hash]) for block_hash in stored)
            assert self.host.num_known == num_copies + len(lowered)

    def run(self, wishes: list[Wish]) -> None:
        for now in range(5000):
            for number, wish in enumerate(wishes):
                if wish.arrives == now:
                    self.add(wish, number)
                if wish.leaves and wish.arrives + wish.after == now:
                    self.leave(wish, number)
            if self.groups or self.in_flight:
                self.step()
            elif now > max(wish.arrives for wish in wishes):
                return
        raise AssertionError("somebody starves")

    def samples(self, number: int) -> dict[int, tuple[list[int], list[FinishReason]]]:
        """Tokens and ends of a request's samples."""
        found: dict[int, tuple[list[int], list[FinishReason]]] = defaultdict(lambda: ([], []))
        for output in self.outputs:
            if output.request_id == str(number):
                tokens, ends = found[output.index]
                tokens += output.token_ids
                ends += [] if output.finish_reason is None else [output.finish_reason]
        return found

    def check(self, wish: Wish, number: int) -> None:
        """That a request got all that it should, and each of its samples ended once."""
        samples = self.samples(number)
        if wish.leaves != "cancel":
            assert sorted(samples) == [*range(wish.n)]
        for index, (tokens, ends) in samples.items():
            expected = [] if wish.is_bad else self.model.output(wish.prompt, index, wish.output)
            if wish.is_bad:
                reason = FinishReason.ERROR
            else:
                reason = FinishReason.STOP if expected[-1] == STOP else FinishReason.LENGTH
            if wish.leaves is None or ends == [reason]:
                assert (tokens, ends) == (expected, [reason])
            else:
                assert tokens == expected[: len(tokens)]
                assert ends == ([FinishReason.DEADLINE] if wish.leaves == "deadline" else [])
        self._check_logprobs(wish, number)

    def _check_logprobs(self, wish: Wish, number: int) -> None:
        outputs = [o for o in self.outputs if o.request_id == str(number)]
        found = [logprob for o in outputs for logprob in o.prompt_logprobs]
        if not wish.wants_logprobs or not any(o.token_ids for o in outputs):
            assert not found
            return
        assert found == [
            TokenLogprob(
                wish.prompt[i + 1],
                float(self.model.score(self.model.seen(wish.prompt[: i + 1]), i)),
                [],
            )
            for i in range(len(wish.prompt) - 1)
        ]


@settings(max_examples=100, deadline=None)
@given(
    wishes=WISHES,
    num_in_flight=st.integers(1, 4),
    spare_blocks=st.integers(0, 10) | st.integers(0, 60),
    budget=st.integers(1, 40),
    window=st.none() | st.integers(1, 20),
    misled=st.booleans(),
    num_slots=st.integers(0, 6) | st.integers(0, 60),
    delays=st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=4),
)
def test_every_request_gets_what_it_should_and_ends_once(
    wishes: list[Wish],
    num_in_flight: int,
    spare_blocks: int,
    budget: int,
    window: int | None,
    misled: bool,
    num_slots: int,
    delays: list[int] | None,
) -> None:
    """Whatever is preempted, forked, shared, cancelled or late while its steps are in flight, is
    kept in host memory or waits for its prefix; what is not finite harms nobody else. The cache has
    room for the longest request, if not for two."""
    longest = max(len(wish.prompt) + wish.output for wish in wishes)
    in_sight = longest if window is None else min(longest, window + budget + BLOCK)
    num_blocks = 1 + max(1, -(-in_sight // BLOCK)) + spare_blocks
    house = House(
        num_in_flight, num_blocks, budget, window, misled=misled, num_slots=num_slots, delays=delays
    )
    house.run(wishes)
    for number, wish in enumerate(wishes):
        house.check(wish, number)
    pool = house.scheduler.blocks.pool
    assert pool.num_available == pool.num_blocks


def test_preemption_in_flight_happens() -> None:
    """The property above would be worth little if its cases were not met."""
    house = House(3, num_blocks=22, budget=48, misled=True)
    wishes = [Wish([1 + i % 2] * (8 + i), 24, arrives=0, n=1 + i % 3) for i in range(6)]
    house.run(wishes)
    assert house.scheduler.num_preemptions > 5
    for number, wish in enumerate(wishes):
        house.check(wish, number)


def test_blocks_come_back_from_host_memory() -> None:
    """Prompts that take turns in a cache with room for one of them at a time."""
    for num_slots in 0, 40:
        house = House(1, num_blocks=16, num_slots=num_slots)
        turns = [Wish([1 + (i % 2)] * 35, 8, arrives=40 * i) for i in range(5)]
        house.run(turns)
        for number, wish in enumerate(turns):
            house.check(wish, number)
        assert (house.tiers.blocks_loaded > 0) == (num_slots > 0)
        assert house.tiers.host_hit_tokens == house.tiers.blocks_loaded * BLOCK


def test_running_sequences_are_dealt_out_over_the_stages() -> None:
    """With as many steps in flight as stages, each decodes its part, and all are always at work."""
    house = House(3, budget=60)
    for number in range(6):
        house.add(Wish([1, 2, 1 + number % 2], 20, 0), number)
    house.step()
    sizes = []
    for _ in range(9):
        batch = house.step()
        assert batch is not None
        sizes.append(len(batch.chunks))
    assert sizes == [2] * 9


def test_a_long_prompt_is_in_flight_piece_by_piece() -> None:
    """The next piece does not wait for what comes of the one before."""
    house = House(2, budget=16)
    house.add(Wish([1, 2] * 20, 1, 0), 0)
    house.in_flight.submit()
    (sequence,) = house.scheduler.running
    assert (sequence.num_computed, sequence.num_scheduled) == (0, 16)
    house.step()
    assert (sequence.num_computed, sequence.num_scheduled) == (8, 16)


def test_what_is_in_flight_when_everyone_has_left_is_collected() -> None:
    house = House(3, budget=12)
    wish = Wish([1, 2] * 20, 4, 0, leaves="cancel")
    house.add(wish, 0)
    house.in_flight.submit()
    house.leave(wish, 0)
    while house.in_flight:
        house.step()
    assert not house.outputs
    assert house.scheduler.blocks.pool.num_available == house.scheduler.blocks.pool.num_blocks


def test_blocks_given_back_while_steps_write_to_them_are_cleared() -> None:
    """When the sequence loses them and when its window leaves them; not those that are computed."""
    blocks = KVBlocks(BlockPool(20), BLOCK, share_prefixes=True, window=6)
    request = Request("r", [1] * 40, SamplingParams())
    sequence = Sequence(RequestGroup(request, 0, 0.0, max_output=1, root_hash=b""), 0)
    blocks.extend(sequence, 24)
    sequence.num_computed, sequence.num_scheduled = 8, 24
    table = list(sequence.block_table)
    assert blocks.release_behind_window(sequence) == 4
    assert sorted(blocks.take_unclean()) == table[2:4]
    blocks.release(sequence)
    assert sorted(blocks.take_unclean()) == table[4:]
    assert not blocks.take_unclean()
