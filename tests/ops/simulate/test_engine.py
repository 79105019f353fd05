"""A simulated engine takes the time its profile says, shares prefixes, and forgets nobody."""

from collections.abc import Sequence
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.prefix.block_hash import block_hashes, root_hash
from cluster.prefix.events import CacheChange, CacheEvent
from ops.simulate.engine import SimulatedEngine
from ops.simulate.profile import EngineProfile
from ops.simulate.sequence import SimulatedSequence
from ops.simulate.virtual_time import VirtualTime

PROFILE = EngineProfile(
    name="test",
    prefill_tokens_per_s={1000: 1000.0},
    decode_step_ms={1: 10.0, 11: 20.0},
    num_blocks=100,
    max_num_seqs=8,
    max_num_batched_tokens=500,
)


class Bench:
    """An engine, and when answers began and ended."""

    def __init__(self, profile: EngineProfile = PROFILE) -> None:
        self.time = VirtualTime()
        self.cached: set[bytes] = set()
        self.engine = SimulatedEngine(self.time, profile, self._hear)
        self.sequences: list[SimulatedSequence] = []
        self.first_s: dict[int, float] = {}
        self.end_s: dict[int, float] = {}

    def _hear(self, events: Sequence[CacheEvent]) -> None:
        for change, hashes in events:
            if change is CacheChange.STORED:
                assert not self.cached & set(hashes)
                self.cached |= set(hashes)
            else:
                assert set(hashes) <= self.cached
                self.cached -= set(hashes)

    def send(self, at_s: float, prompt: range, output_tokens: int) -> int:
        number = len(self.sequences)
        hashes = block_hashes(root_hash("", 16), [*prompt, *[7] * output_tokens], 16)
        sequence = SimulatedSequence(
            num_prompt_tokens=len(prompt),
            output_tokens=output_tokens,
            hashes=hashes,
            on_first_token=lambda: self._note(self.first_s, number),
            on_end=lambda: self._note(self.end_s, number),
        )
        self.sequences.append(sequence)
        self.time.at(at_s, lambda: self.engine.submit(sequence))
        return number

    def _note(self, times_s: dict[int, float], number: int) -> None:
        assert number not in times_s
        times_s[number] = self.time.now()

    def run(self) -> None:
        self.time.run(lambda: len(self.end_s) == len(self.sequences))


def test_one_request_takes_its_prefill_and_a_step_for_each_further_token() -> None:
    bench = Bench()
    bench.send(1.0, range(400), 11)
    bench.run()
    assert bench.first_s[0] == pytest.approx(1.4)
    assert bench.end_s[0] == pytest.approx(1.4 + 10 * 0.010)
    assert bench.engine.busy_s == pytest.approx(0.5)


def test_a_prompt_beyond_the_budget_takes_several_steps() -> None:
    bench = Bench()
    bench.send(0.0, range(800), 1)
    bench.send(0.0, range(10_000, 10_200), 1)
    bench.run()
    assert bench.first_s[0] == bench.first_s[1] == pytest.approx(1.0)


def test_whoever_comes_waits_for_the_step_that_goes_on_and_for_no_more() -> None:
    bench = Bench()
    bench.send(0.0, range(100), 1000)
    bench.send(0.1151, range(5000, 5100), 1)
    bench.run()
    assert bench.first_s[1] == pytest.approx(0.12 + 0.1 + 0.01)


def test_a_known_prefix_is_not_computed_again() -> None:
    bench = Bench()
    bench.send(0.0, range(400), 33)
    bench.send(2.0, range(400), 1)
    bench.run()
    assert bench.sequences[1].cached_tokens == 384
    assert bench.first_s[1] == pytest.approx(2.0 + 0.016)


def test_answers_are_cached_too() -> None:
    bench = Bench()
    bench.send(0.0, range(160), 33)
    bench.run()
    assert len(bench.cached) == (160 + 32) // 16


requests = st.lists(
    st.tuples(st.floats(0, 1.5), st.integers(0, 3), st.integers(1, 900), st.integers(1, 60)),
    min_size=1,
    max_size=16,
)
"""When they come, which of four texts they begin, and lengths of prompt and answer."""


@given(requests)
def test_all_are_answered_and_the_cache_is_as_events_say(
    wanted: list[tuple[float, int, int, int]],
) -> None:
    bench = Bench()
    for at_s, kind, prompt, output in wanted:
        bench.send(at_s, range(1000 * kind, 1000 * kind + prompt), output)
    bench.run()
    for number, (at_s, _, prompt, output) in enumerate(wanted):
        least_s = PROFILE.prefill_s(bench.sequences[number].cached_tokens, prompt)
        assert bench.first_s[number] - at_s >= least_s - 1e-9
        assert bench.end_s[number] - bench.first_s[number] >= (output - 1) * 0.010 - 1e-9
    assert len(bench.cached) <= PROFILE.num_blocks
    load = bench.engine.load()
    assert (load.running_sequences, load.waiting_requests, load.queued_prefill_tokens) == (0, 0, 0)
    assert load.free_blocks == load.total_blocks == 100


@given(requests, st.integers(0, 3), st.integers(1, 600))
def test_what_a_prompt_will_wait_is_known_beforehand(
    wanted: list[tuple[float, int, int, int]], kind: int, prompt: int
) -> None:
    """While places and blocks suffice; this is what makes the oracle one."""
    bench = Bench(PROFILE.model_copy(update={"num_blocks": 1000, "max_num_seqs": 100}))
    for at_s, other, length, output in wanted:
        bench.send(at_s, range(1000 * other, 1000 * other + length), output)
    asked_s = 1.5000001
    told: list[float] = []
    hashes = block_hashes(root_hash("", 16), range(1000 * kind, 1000 * kind + prompt), 16)
    usable = hashes[: (prompt - 1) // 16]
    bench.time.at(asked_s, lambda: told.append(bench.engine.cost(prompt, usable).first_token_s))
    last = bench.send(asked_s, range(1000 * kind, 1000 * kind + prompt), 1)
    bench.run()
    real_s = bench.first_s[last] - asked_s
    # Others that end meanwhile make its steps shorter, by a little.
    assert told[0] == pytest.approx(real_s, rel=0.25, abs=0.05)


def test_what_never_fits_is_refused() -> None:
    bench = Bench()
    bench.send(0.0, range(1600), 1)
    with pytest.raises(ValueError, match="needs 101 blocks, the profile has 100"):
        bench.run()


@given(st.lists(st.tuples(st.floats(0, 9), st.booleans()), max_size=20))
def test_time_goes_forward_in_the_order_that_was_asked_for(
    wanted: list[tuple[float, bool]],
) -> None:
    time, numbers, seen = VirtualTime(), count(), list[tuple[float, int]]()

    def note(number: int) -> None:
        seen.append((time.now(), number))

    for at_s, is_again in wanted:
        number = next(numbers)
        time.at(at_s, lambda number=number: note(number))  # type: ignore[misc]
        if is_again:
            time.at(at_s, lambda: time.after(1.0, lambda: note(next(numbers))))
    time.run(lambda: False)
    assert [at_s for at_s, _ in seen] == sorted(at_s for at_s, _ in seen)
    assert len(seen) == sum(1 + again for _, again in wanted)
