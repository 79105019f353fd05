"""Plans reach every reader, whole and in order, whatever their sizes."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.plan_ring import CAPACITY_BYTES, PlanRing
from workers.engine.step_plan import Ints
from workers.kernels.cpu_collectives import Futex
from workers.kernels.library import load_library
from workers.parallel.group import RankLostError
from workers.parallel.segment import Segment

LONG = CAPACITY_BYTES // 8
sizes = st.lists(st.one_of(st.integers(0, 200), st.integers(0, 3 * LONG)), min_size=1, max_size=8)


@pytest.fixture(scope="module")
def futex() -> Futex:
    library = load_library()
    if library is None:
        pytest.skip("needs the CPU kernels")
    return Futex(library)


def _create(futex: Futex, num_readers: int) -> PlanRing:
    return PlanRing(futex, Segment.create(PlanRing.segment_bytes(num_readers)), num_readers)


def _open(futex: Futex, path: str, num_readers: int, reader: int) -> PlanRing:
    segment = Segment.open(path, PlanRing.segment_bytes(num_readers))
    return PlanRing(futex, segment, num_readers, reader)


def _plan(number: int, size: int) -> Ints:
    return np.arange(number, number + size, dtype=np.int64)


def _read(ring: PlanRing, count: int) -> list[Ints | None]:
    return [ring.read() for _ in range(count)]


def _read_all(ring: PlanRing) -> list[Ints]:
    plans = []
    while (plan := ring.read()) is not None:
        plans.append(plan)
    return plans


@settings(max_examples=20, deadline=None)
@given(sizes, st.integers(1, 3))
def test_all_readers_get_all_plans_in_order(
    futex: Futex, lengths: list[int], num_readers: int
) -> None:
    """Plans longer than the ring among them."""
    ring = _create(futex, num_readers)
    readers = [_open(futex, ring.path, num_readers, index) for index in range(num_readers)]
    plans = [_plan(number, length) for number, length in enumerate(lengths)]
    with ThreadPoolExecutor(num_readers) as pool:
        reading = [pool.submit(_read, reader, len(plans)) for reader in readers]
        for plan in plans:
            ring.write(plan, limit_s=30.0)
        for future in reading:
            for got, plan in zip(future.result(), plans, strict=True):
                assert got is not None
                np.testing.assert_array_equal(got, plan)
    for end in (ring, *readers):
        end.close()


def _sum_up(path: str, results: "Connection[int, int]") -> None:
    library = load_library()
    assert library is not None
    reader = _open(Futex(library), path, 1, 0)
    results.send(sum(int(plan.sum()) for plan in _read_all(reader)))


def test_a_process_reads_what_another_one_wrote(futex: Futex) -> None:
    """Nothing is torn or left out, though the reader sleeps and wakes in between."""
    ring = _create(futex, 1)
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_sum_up, args=(ring.path, theirs), daemon=True
    )
    process.start()
    plans = [_plan(number, number * 37 % 5000) for number in range(3000)]
    for plan in plans:
        ring.write(plan, limit_s=60.0)
    ring.end()
    assert ours.recv() == sum(int(plan.sum()) for plan in plans)
    process.join()
    ring.close()


def test_a_reader_that_takes_nothing_is_not_waited_for_without_end(futex: Futex) -> None:
    ring = _create(futex, 2)
    quick = _open(futex, ring.path, 2, 0)
    ring.write(_plan(0, LONG - 1), limit_s=0.0)
    assert quick.read() is not None
    with pytest.raises(RankLostError, match="reader 1 took no plan"):
        ring.write(_plan(0, 1), limit_s=0.01)
    for end in (ring, quick):
        end.close()


def test_the_end_releases_whoever_reads_or_writes(futex: Futex) -> None:
    ring = _create(futex, 2)
    readers = [_open(futex, ring.path, 2, index) for index in range(2)]
    with ThreadPoolExecutor(3) as pool:
        reading = [pool.submit(_read_all, reader) for reader in readers[:1]]
        writing = pool.submit(ring.write, _plan(0, 2 * LONG), 60.0)
        ring.end()
        assert reading[0].result() == []
        with pytest.raises(RankLostError):
            writing.result()
    assert readers[1].read() is None
    for end in (ring, *readers):
        end.close()
