"""Collectives and mailboxes, between threads that stand for processes: plain torch says what for.

The kernels do not hold the GIL, so each thread waits as a process would.
"""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.kernels.cpu_collectives import (
    MIN_CAPACITY,
    CpuCollectives,
    Failure,
    Futex,
    Mailbox,
    Memory,
    Seat,
)
from workers.kernels.library import Library

T = TypeVar("T")
SETTINGS = settings(max_examples=25, deadline=None)
LIMIT_S = 60.0
CAPACITY = MIN_CAPACITY
SIZES = st.integers(1, 5)
LENGTHS = st.integers(0, 5 * CAPACITY // 4)
"""Of messages: none, one and several pieces, with and without a rest."""


def zeros(num_bytes: int) -> Memory:
    return (ctypes.c_char * num_bytes)()


def together(size: int, body: Callable[[int], T]) -> list[T]:
    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(body, range(size)))


def seats(collectives: CpuCollectives, size: int, limit_s: float = LIMIT_S) -> list[Seat]:
    memory = zeros(collectives.group_bytes(size, CAPACITY))
    return [Seat(memory, rank, size, CAPACITY, limit_s) for rank in range(size)]


def mailbox(collectives: CpuCollectives, num_slots: int = 2, limit_s: float = LIMIT_S) -> Mailbox:
    memory = zeros(collectives.mailbox_bytes(num_slots, CAPACITY))
    return Mailbox(memory, num_slots, CAPACITY, limit_s)


def randn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_sums_are_those_of_float32_in_the_order_of_ranks(library: Library) -> None:
    collectives = CpuCollectives(library)

    @SETTINGS
    @given(SIZES, LENGTHS, st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 99))
    def holds(size: int, length: int, dtype: torch.dtype, seed: int) -> None:
        parts = randn(seed, size, length).to(dtype)
        total = torch.zeros(length)
        for part in parts:
            total += part
        places = seats(collectives, size)
        found = [part.clone() for part in parts]
        together(size, lambda rank: collectives.all_reduce(places[rank], found[rank]))
        assert all(torch.equal(each, total.to(dtype)) for each in found)

    holds()


def test_everyone_gathers_everyones_part(library: Library) -> None:
    collectives = CpuCollectives(library)

    @SETTINGS
    @given(SIZES, LENGTHS, st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
    def holds(size: int, length: int, dtype: torch.dtype) -> None:
        parts = (1000 * randn(0, size, length)).to(dtype)
        places, out = seats(collectives, size), torch.empty(size, size, length, dtype=dtype)
        together(size, lambda rank: collectives.all_gather(places[rank], parts[rank], out[rank]))
        assert all(torch.equal(each, parts) for each in out)

    holds()


def test_rows_go_to_whom_they_are_for(library: Library) -> None:
    collectives = CpuCollectives(library)
    tables = SIZES.flatmap(
        lambda size: st.lists(
            st.lists(st.integers(0, 9), min_size=size, max_size=size),
            min_size=size,
            max_size=size,
        )
    )

    @SETTINGS
    @given(tables, st.integers(1, 300), st.sampled_from([torch.bfloat16, torch.int64]))
    def holds(counts: list[list[int]], width: int, dtype: torch.dtype) -> None:
        size = len(counts)
        sent = [(1000 * randn(rank, sum(counts[rank]), width)).to(dtype) for rank in range(size)]
        parts = [x.split_with_sizes(row) for x, row in zip(sent, counts, strict=True)]
        places = seats(collectives, size)

        def exchange(rank: int) -> torch.Tensor:
            out_counts = [row[rank] for row in counts]
            out = torch.empty(sum(out_counts), width, dtype=dtype)
            collectives.all_to_all(places[rank], sent[rank], counts[rank], out, out_counts)
            return out

        for rank, found in enumerate(together(size, exchange)):
            assert torch.equal(found, torch.cat([part[rank] for part in parts]))

    holds()


def test_collectives_of_one_group_follow_each_other_without_a_pause(library: Library) -> None:
    collectives, size, width = CpuCollectives(library), 3, 96
    places = seats(collectives, size)

    def run(rank: int) -> list[torch.Tensor]:
        x, gathered = torch.full((width,), float(rank)), torch.empty(size, width)
        found = []
        for turn in range(200):
            collectives.all_reduce(places[rank], x)
            collectives.all_gather(places[rank], x + rank, gathered)
            rows, out = gathered.clone(), torch.empty(size, width)
            collectives.all_to_all(places[rank], rows, [1] * size, out, [1] * size)
            x = out[turn % size] / 4
            found.append(x.clone())
        return found

    first, *others = together(size, run)
    held = [1.0 * rank for rank in range(size)]
    for turn, x in enumerate(first):
        # All gather the same rows, total + their rank, and send each rank the row of its own.
        total = sum(held)
        held = [(total + rank) / 4 for rank in range(size)]
        assert torch.allclose(x, torch.full((width,), held[0]))
        assert all(torch.allclose(x + rank / 4, each[turn]) for rank, each in enumerate(others, 1))


def test_more_threads_of_a_rank_change_nothing(library: Library) -> None:
    collectives, size, length = CpuCollectives(library), 2, 300_000
    capacity = 2**20
    memory = zeros(collectives.group_bytes(size, capacity))
    parts = randn(0, size, length).bfloat16()
    found = parts.clone()
    library.set_num_threads(3)
    try:
        together(
            size,
            lambda rank: collectives.all_reduce(
                Seat(memory, rank, size, capacity, LIMIT_S), found[rank]
            ),
        )
    finally:
        library.set_num_threads(1)
    assert torch.equal(found, parts.float().sum(0).bfloat16().expand(size, -1))


def test_a_recorded_collective_plays_again_on_what_is_there_then(library: Library) -> None:
    collectives, size = CpuCollectives(library), 2
    places, x = seats(collectives, size), torch.empty(size, 1000)

    def run(rank: int) -> list[torch.Tensor]:
        found = []
        x[rank] = rank
        with library.recording() as program:
            collectives.all_reduce(places[rank], x[rank])
        for turn in range(5):
            found.append(x[rank].clone())
            x[rank] = rank + turn
            program.play()
        return found

    for found in together(size, run):
        assert [set(each.tolist()) for each in found] == [{1.0}, {1.0}, {3.0}, {5.0}, {7.0}]


def test_messages_keep_their_order_and_size(library: Library) -> None:
    collectives = CpuCollectives(library)

    @SETTINGS
    @given(st.lists(LENGTHS, max_size=20), st.sampled_from([1, 2, 4]))
    def holds(lengths: list[int], num_slots: int) -> None:
        box = mailbox(collectives, num_slots)
        messages = [randn(number, length) for number, length in enumerate(lengths)]

        def end(which: int) -> list[torch.Tensor]:
            found = []
            for message in messages:
                copy = message.clone()
                if which == 0:
                    collectives.send(box, copy)
                    copy.zero_()
                else:
                    collectives.receive(box, copy.zero_())
                    found.append(copy)
            return found

        assert all(map(torch.equal, together(2, end)[1], messages))

    holds()


def test_a_sender_runs_ahead_by_the_slots(library: Library) -> None:
    collectives = CpuCollectives(library)
    box = mailbox(collectives, num_slots=4)
    for number in range(4):  # nobody receives yet
        collectives.send(box, torch.full((10,), number))
    out = torch.empty(10, dtype=torch.int64)
    for number in range(4):
        collectives.receive(box, out)
        assert out.tolist() == [number] * 10
    assert collectives.failure(box.memory) is None


def test_who_is_not_there_within_the_limit_ends_the_wait(library: Library) -> None:
    collectives = CpuCollectives(library)
    first, _, third = seats(collectives, 3, limit_s=0.2)
    both = {0: first, 1: third}
    together(2, lambda one: collectives.all_reduce(both[one], torch.ones(10)))
    assert collectives.failure(first.memory) == Failure("late", 1)

    box = mailbox(collectives, limit_s=0.2)
    collectives.receive(box, torch.ones(10))
    assert collectives.failure(box.memory) == Failure("late", 0)
    box = mailbox(collectives, limit_s=0.2)
    for _ in range(3):
        collectives.send(box, torch.ones(10))
    assert collectives.failure(box.memory) == Failure("late", 1)


def test_an_abort_ends_waits_under_way_and_later_ones(library: Library) -> None:
    collectives = CpuCollectives(library)
    seat, box = seats(collectives, 2)[0], mailbox(collectives)
    with ThreadPoolExecutor(2) as threads:
        waits = [
            threads.submit(collectives.all_reduce, seat, torch.ones(10)),
            threads.submit(collectives.receive, box, torch.ones(10)),
        ]
        for memory in (seat.memory, box.memory):
            collectives.abort(memory)
        for wait in waits:
            wait.result()
    collectives.all_gather(seat, torch.ones(10), torch.ones(2, 10))
    collectives.send(box, torch.ones(10))
    assert collectives.failure(seat.memory) == Failure("aborted", 0)
    assert collectives.failure(box.memory) == Failure("aborted", 0)


Call = Callable[[CpuCollectives, Seat], None]
CALLS: list[Call] = [
    lambda collectives, seat: collectives.all_reduce(seat, torch.ones(10)),
    lambda collectives, seat: collectives.all_reduce(seat, torch.ones(11)),
    lambda collectives, seat: collectives.all_reduce(seat, torch.ones(10).bfloat16()),
    lambda collectives, seat: collectives.all_gather(seat, torch.ones(10), torch.ones(2, 10)),
    lambda collectives, seat: collectives.all_to_all(
        seat, torch.ones(2, 10), [1, 1], torch.ones(2, 10), [1, 1]
    ),
    lambda collectives, seat: collectives.all_to_all(
        seat, torch.ones(2, 10), [1, 1], torch.ones(4, 10), [2, 2]
    ),
]


def test_ranks_that_call_different_things_fail(library: Library) -> None:
    collectives = CpuCollectives(library)
    for calls in combinations(CALLS, 2):
        places = seats(collectives, 2)
        with ThreadPoolExecutor(2) as threads:
            for call, seat in zip(calls, places, strict=True):
                threads.submit(call, collectives, seat)
        failure = collectives.failure(places[0].memory)
        assert failure is not None
        assert failure.reason == "disagreed"


def test_a_message_of_another_size_fails(library: Library) -> None:
    collectives = CpuCollectives(library)
    box = mailbox(collectives)
    collectives.send(box, torch.ones(10))
    collectives.receive(box, torch.ones(11))
    assert collectives.failure(box.memory) == Failure("disagreed", 0)


def test_arguments_are_checked(library: Library) -> None:
    collectives = CpuCollectives(library)
    (seat,), box = seats(collectives, 1), mailbox(collectives)
    gap = torch.ones(4, 4)[:, :2]
    with pytest.raises(TypeError, match=r"x: torch\.int64"):
        collectives.all_reduce(seat, torch.ones(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x: \(4, 2\)"):
        collectives.all_reduce(seat, gap)
    with pytest.raises(ValueError, match="out:"):
        collectives.all_gather(seat, torch.ones(4), torch.ones(4))
    with pytest.raises(ValueError, match=r"counts: \[1, 1\], expected 1"):
        collectives.all_to_all(seat, torch.ones(2, 4), [1, 1], torch.ones(2, 4), [2])
    with pytest.raises(ValueError, match=r"out: \(2, 4\)"):
        collectives.all_to_all(seat, torch.ones(2, 4), [2], torch.ones(2, 4), [1])
    with pytest.raises(ValueError, match=r"x: \(4, 2\)"):
        collectives.send(box, gap)
    with pytest.raises(ValueError, match="rank: 2, expected 0 to 1"):
        Seat(seat.memory, 2, 2, CAPACITY, LIMIT_S)
    with pytest.raises(ValueError, match="size: 65, expected 1 to 64"):
        Seat(seat.memory, 0, 65, CAPACITY, LIMIT_S)
    with pytest.raises(ValueError, match="capacity: 100, expected a multiple of 64"):
        Seat(seat.memory, 0, 2, 100, LIMIT_S)
    with pytest.raises(ValueError, match="num_slots: 3, expected a power of two"):
        Mailbox(box.memory, 3, CAPACITY, LIMIT_S)


def test_a_futex_wakes_who_sleeps_on_it(library: Library) -> None:
    futex, word = Futex(library), ctypes.c_uint32(7)
    address = ctypes.addressof(word)
    assert futex.wait(address, 6, LIMIT_S), "the word is not as expected"
    assert not futex.wait(address, 7, 0.001), "nobody wakes it"
    with ThreadPoolExecutor(1) as threads:
        sleep = threads.submit(futex.wait, address, 7, LIMIT_S)
        word.value = 8  # who sleeps from now on does not, as the word has changed
        while not sleep.done():
            futex.wake(address)
        assert sleep.result()
