"""Scheduler: budgets are kept, everyone is served in the end, and no block leaks."""

from dataclasses import dataclass
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.batch import Chunk
from workers.engine.block_pool import BlockPool
from workers.engine.kv_blocks import KVBlocks
from workers.engine.rates import Rates
from workers.engine.request import Request
from workers.engine.sampling_params import SamplingParams
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import RequestGroup, Sequence

BLOCK = 4


@dataclass(frozen=True)
class Wish:
    prompt: str
    output: int
    arrives: int
    n: int = 1
    priority: int = 0
    yields: bool = False


WISHES = st.lists(
    st.builds(
        Wish,
        prompt=st.text("ab", min_size=1, max_size=40),
        output=st.integers(1, 24),
        arrives=st.integers(0, 30),
        n=st.integers(1, 3),
        priority=st.integers(-1, 1),
        yields=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


def make_scheduler(
    num_blocks: int,
    *,
    budget: int = 16,
    seqs: int = 6,
    window: int | None = None,
    prefill_tokens_per_s: int = 0,
) -> Scheduler:
    blocks = KVBlocks(BlockPool(num_blocks), BLOCK, share_prefixes=True, window=window)
    rates = Rates()
    if prefill_tokens_per_s:
        rates.observe(prefill_tokens_per_s, 0, 1.0)
    return Scheduler(blocks, max_num_seqs=seqs, max_num_batched_tokens=budget, rates=rates)


def make_group(wish: Wish, number: int) -> RequestGroup:
    request = Request(
        str(number),
        [ord(c) for c in wish.prompt],
        SamplingParams(n=wish.n, max_tokens=wish.output),
        priority=wish.priority,
        yields=wish.yields,
    )
    return RequestGroup(
        request,
        number,
        float(wish.arrives),
        max_output=wish.output,
        root_hash=b"",
        is_forked=wish.n == 1,
    )


class Simulation:
    """Runs the scheduler against a model that computes nothing, and watches it."""

    def __init__(self, scheduler: Scheduler, budget: int, seqs: int) -> None:
        self.scheduler = scheduler
        self.budget = budget
        self.seqs = seqs
        self.order: list[tuple[str, int]] = []
        self.steps = 0

    def step(self) -> None:
        batch = self.scheduler.schedule()
        self.steps += 1
        assert batch.chunks, "somebody waits or runs, but nothing was scheduled"
        assert sum(chunk.length for chunk in batch.chunks) == batch.num_tokens <= self.budget
        assert len({id(chunk.sequence) for chunk in batch.chunks}) == len(batch.chunks)
        self.check_writes(batch.chunks)
        for chunk in batch.chunks:
            chunk.sequence.num_computed = chunk.end
            self.scheduler.blocks.register_full(chunk.sequence)
        for chunk in batch.chunks:
            if chunk.end == len(chunk.sequence.token_ids):
                self.sample(chunk.sequence)
        running = self.scheduler.running
        assert len([s for s in running if not s.group.request.yields]) <= self.seqs
        assert len(running) <= 2 * self.seqs
        self.check_books()

    def check_writes(self, chunks: list[Chunk]) -> None:
        """No step writes into a block that somebody else holds too."""
        for chunk in chunks:
            table = chunk.sequence.block_table
            for i in range(chunk.start // BLOCK, -(-chunk.end // BLOCK)):
                assert table[i] != 0
                assert self.scheduler.blocks.pool.num_holders(table[i]) == 1

    def sample(self, sequence: Sequence) -> None:
        group = sequence.group
        new = [sequence]
        if not group.is_forked:
            group.is_forked = True
            new += [self.scheduler.fork(sequence, i) for i in range(1, group.request.params.n)]
        for one in new:
            one.append(ord("x") + one.index)
            if one.num_output >= group.max_output:
                self.scheduler.remove(one)
                self.order.append((group.request.request_id, one.index))

    def check_books(self) -> None:
        live = {id(s): s for s in [*self.scheduler.running, *self.scheduler.waiting()]}
        assert self.scheduler.queued_tokens == sum(
            s.num_uncomputed for s in live.values() if s.num_uncomputed > 1 or not s.block_table
        )
        self.scheduler.blocks.pool.check_integrity(
            [[n for n in s.block_table if n] for s in live.values()]
        )

    def run(self, wishes: list[Wish]) -> None:
        pending = sorted(enumerate(wishes), key=lambda pair: pair[1].arrives)
        for now in count():
            while pending and pending[0][1].arrives <= now:
                number, wish = pending.pop(0)
                self.scheduler.add(make_group(wish, number))
            if self.scheduler.running or self.scheduler.num_waiting:
                self.step()
            elif not pending:
                return
            assert now < 5000, "somebody starves"


@settings(max_examples=150, deadline=None)
@given(
    wishes=WISHES,
    num_blocks=st.integers(18, 60),
    budget=st.integers(1, 40),
    window=st.one_of(st.none(), st.integers(1, 20)),
    rate=st.integers(0, 2000),
)
def test_everyone_is_served_within_budget_and_nothing_leaks(
    wishes: list[Wish], num_blocks: int, budget: int, window: int | None, rate: int
) -> None:
    """Any load that fits one at a time is served whole, whatever the cache, budget, window and
    rate, and whoever yields."""
    scheduler = make_scheduler(num_blocks, budget=budget, window=window, prefill_tokens_per_s=rate)
    simulation = Simulation(scheduler, budget, 6)
    simulation.run(wishes)
    assert sorted(simulation.order) == sorted(
        (str(number), index) for number, wish in enumerate(wishes) for index in range(wish.n)
    )
    assert scheduler.blocks.pool.num_available == num_blocks - 1


def test_decodes_go_on_while_a_long_prompt_is_read() -> None:
    scheduler = make_scheduler(100, budget=8)
    simulation = Simulation(scheduler, 8, 6)
    scheduler.add(make_group(Wish("ab", 30, 0), 0))
    simulation.step()
    (decoding,) = scheduler.running
    scheduler.add(make_group(Wish("b" * 64, 2, 0), 1))
    for _ in range(8):
        before = decoding.num_output
        simulation.step()
        assert decoding.num_output == before + 1


def test_higher_priority_starts_first() -> None:
    scheduler = make_scheduler(100, seqs=1)
    simulation = Simulation(scheduler, 16, 1)
    for number, priority in enumerate((0, 5, 1)):
        scheduler.add(make_group(Wish("ab", 2, 0, priority=priority), number))
    while scheduler.running or scheduler.num_waiting:
        simulation.step()
    assert [name for name, _ in simulation.order] == ["1", "2", "0"]


def test_known_lengths_are_admitted_without_preemption() -> None:
    """With outputs of known length, admission looks far enough ahead that nobody is preempted."""
    scheduler = make_scheduler(40, budget=64)
    simulation = Simulation(scheduler, 64, 6)
    simulation.run([Wish("ab" * 10, 24, i) for i in range(12)])
    assert scheduler.num_preemptions == 0


def test_a_prefix_that_is_shared_counts_once() -> None:
    """Admission does not take shared blocks for as many as have them in their tables."""
    scheduler = make_scheduler(100, budget=256, seqs=64)
    simulation = Simulation(scheduler, 256, 64)
    simulation.run([Wish("ab" * 100, 4, 0)])
    for number in range(1, 13):
        scheduler.add(make_group(Wish("ab" * 100 + "cdef"[number % 4], 8, 0), number))
    simulation.step()
    assert len(scheduler.running) == 12
    while scheduler.running:
        simulation.step()
    assert scheduler.num_preemptions == 0


def test_samples_to_be_forked_are_foreseen() -> None:
    """While a prompt is read that many samples will come of, their blocks are spoken for."""
    scheduler = make_scheduler(60, budget=40, seqs=12)
    simulation = Simulation(scheduler, 40, 12)
    simulation.run([Wish("ab" * 30, 24, 0, n=5), *(Wish(c * 6, 40, 1) for c in "cdef")])
    assert scheduler.num_preemptions == 0


def test_a_windowed_sequence_outgrows_the_cache() -> None:
    """With a sliding window in every layer, a sequence may be longer than the cache."""
    scheduler = make_scheduler(12, budget=8, window=8)
    simulation = Simulation(scheduler, 8, 6)
    simulation.run([Wish("a" * 60, 60, 0)])
    assert simulation.order == [("0", 0)]
    assert scheduler.num_preemptions == 0


def run_flood(scheduler: Scheduler, count: int, prompt: str = "ab") -> Simulation:
    """So many that yield, after as many steps as it takes to read all prompts that may run."""
    simulation = Simulation(scheduler, 256, 4)
    for number in range(count):
        scheduler.add(make_group(Wish(prompt, 60, 0, yields=True), number))
    while scheduler.queued_tokens and len(scheduler.running) < 4:
        simulation.step()
    return simulation


@given(num_flooding=st.integers(1, 12), num_others=st.integers(1, 4))
def test_those_that_do_not_yield_are_read_in_the_next_step(
    num_flooding: int, num_others: int
) -> None:
    """Whatever runs and waits that yields; and from then on no more than may are in a step."""
    scheduler = make_scheduler(1000, budget=256, seqs=4)
    simulation = run_flood(scheduler, num_flooding)
    others = [make_group(Wish("b" * 20, 3, 0), 100 + number) for number in range(num_others)]
    for group in others:
        scheduler.add(group)
    simulation.step()
    assert [group.live[0].num_output for group in others] == [1] * num_others
    resting = sorted(scheduler.running, key=lambda s: s.group.order)[4:]
    assert all(s.group.request.yields and s.block_table for s in resting)
    lengths = [len(s.token_ids) for s in resting]
    simulation.step()
    assert [len(s.token_ids) for s in resting] == lengths
    while scheduler.running or scheduler.num_waiting:
        simulation.step()
    assert len(simulation.order) == num_flooding + num_others


@given(rate=st.integers(1, 5000), prompt=st.integers(2, 300), other=st.integers(2, 150))
def test_a_step_reads_little_of_prompts_that_yield_and_nothing_beside_others(
    rate: int, prompt: int, other: int
) -> None:
    """What may be read in 20 ms, and 16 tokens at least."""
    scheduler = make_scheduler(1000, budget=256, seqs=6, prefill_tokens_per_s=rate)
    for number in range(3):
        scheduler.add(make_group(Wish("ab" * prompt, 2, 0, yields=True), number))
    most = max(16, rate // 50)
    batch = scheduler.schedule()
    assert 0 < batch.num_tokens <= max(most, 1)
    for chunk in batch.chunks:
        chunk.sequence.num_computed = chunk.end
    scheduler.add(make_group(Wish("c" * other, 2, 0), 3))
    lengths = {c.sequence.group.arrival: c.length for c in scheduler.schedule().chunks}
    assert lengths[3] == other
    assert sum(length for number, length in lengths.items() if number != 3 and length > 1) <= max(
        0, most - other
    )


def test_who_yields_waits_for_five_seconds_of_others_at_most() -> None:
    scheduler = make_scheduler(100, seqs=1)
    simulation = Simulation(scheduler, 16, 1)
    wishes = [Wish("ab", 2, 0, yields=True), Wish("ab", 2, 4), Wish("ab", 2, 6), Wish("ab", 2, 3)]
    for number, wish in enumerate(wishes):
        scheduler.add(make_group(wish, number))
    while scheduler.running or scheduler.num_waiting:
        simulation.step()
    assert [name for name, _ in simulation.order] == ["3", "1", "0", "2"]
