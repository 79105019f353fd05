"""Ranks in processes of their own, over shared memory and over sockets: the same from outside."""

import signal
import socket
from collections.abc import Iterator

import psutil
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.workers.parallel import rank_bodies as bodies
from tests.workers.parallel.rank_processes import (
    ANSWER_S,
    How,
    Rank,
    RankProcesses,
    new_store,
    open_connection,
)
from workers.kernels.library import load_library
from workers.parallel.connect import Meeting, connect, interface_of
from workers.parallel.group import RankLostError
from workers.parallel.layout import ParallelLayout

pytestmark = pytest.mark.skipif(load_library() is None, reason="needs the CPU kernels")

SETTINGS = settings(max_examples=15, deadline=None)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
SHAPES = st.lists(st.integers(1, 40), min_size=1, max_size=3)
LARGE = [700_001]
"""Elements: several pieces of a segment's buffers, and a rest."""
HERE = "127.0.0.1"
BACKENDS = {True: ("SharedMemoryGroup", "SharedMemoryLink"), False: ("TorchGroup", "TorchLink")}


@pytest.fixture(params=[True, False], ids=["shared", "gloo"])
def has_kernels(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def processes() -> Iterator[RankProcesses]:
    with RankProcesses(4) as processes:
        yield processes


@pytest.fixture
def tensor_ranks(processes: RankProcesses, has_kernels: bool) -> RankProcesses:
    """Four ranks that are one group."""
    types = processes.connect(How(ParallelLayout(tensor=4), [HERE] * 4, has_kernels))
    assert {found[0] for found in types} == {BACKENDS[has_kernels][0]}
    return processes


@pytest.fixture
def pipeline_ranks(processes: RankProcesses, has_kernels: bool) -> RankProcesses:
    """Four ranks that follow each other."""
    types = processes.connect(How(ParallelLayout(pipeline=4), [HERE] * 4, has_kernels))
    link = BACKENDS[has_kernels][1]
    assert {tuple(found[3:]) for found in types} == {
        ("NoneType", link),
        (link, link),
        (link, "NoneType"),
    }
    return processes


def test_sums_are_in_float32_and_bit_equal(tensor_ranks: RankProcesses) -> None:
    @SETTINGS
    @given(SHAPES, DTYPES)
    @example(LARGE, torch.bfloat16)
    @example(LARGE, torch.float32)
    def holds(shape: list[int], dtype: torch.dtype) -> None:
        assert len(set(tensor_ranks.run(bodies.all_reduce, shape, dtype))) == 1

    holds()


def test_everyone_gathers_everyones_part(tensor_ranks: RankProcesses) -> None:
    @SETTINGS
    @given(SHAPES, DTYPES | st.just(torch.int64))
    @example(LARGE, torch.bfloat16)
    def holds(shape: list[int], dtype: torch.dtype) -> None:
        tensor_ranks.run(bodies.all_gather, shape, dtype)

    holds()


def test_rows_go_to_whom_they_are_for(tensor_ranks: RankProcesses) -> None:
    rows = st.lists(st.integers(0, 9), min_size=4, max_size=4)

    @SETTINGS
    @given(st.lists(rows, min_size=4, max_size=4), st.integers(1, 9), DTYPES | st.just(torch.int64))
    @example([[0] * 4] * 4, 3, torch.float32)
    @example([[9, 0, 0, 400], [0] * 4, [1, 2, 3, 4], [0, 500, 0, 0]], 1000, torch.float32)
    def holds(counts: list[list[int]], width: int, dtype: torch.dtype) -> None:
        tensor_ranks.run(bodies.all_to_all, counts, width, dtype)

    holds()


def test_a_step_with_a_collective_repeats(tensor_ranks: RankProcesses) -> None:
    tensor_ranks.run(bodies.play)


def test_messages_go_down_the_pipeline_in_order(pipeline_ranks: RankProcesses) -> None:
    pipeline_ranks.run(bodies.pass_messages, [10, 1, 5000, 0, 700_001, 10], torch.float32)
    pipeline_ranks.run(bodies.pass_messages, [64 * 1024] * 40, torch.bfloat16)
    pipeline_ranks.run(bodies.pass_messages, [10_000_000], torch.bfloat16)


def test_a_stage_sends_ahead(processes: RankProcesses, has_kernels: bool) -> None:
    layout = ParallelLayout(pipeline=2, sequence=2)
    processes.connect(How(layout, [HERE] * 4, has_kernels))
    processes.run(bodies.send_ahead, 3)


def test_ranks_of_a_machine_share_memory_and_reach_others_by_sockets(
    processes: RankProcesses,
) -> None:
    beyond = another_address()
    layout = ParallelLayout(tensor=2, pipeline=2)
    types = processes.connect(How(layout, [HERE, HERE, beyond, beyond], True))
    assert {found[0] for found in types} == {"SharedMemoryGroup"}
    assert {found[3] for found in types} == {"TorchLink", "NoneType"}
    processes.run(bodies.all_reduce, [3, 5], torch.bfloat16)
    processes.run(bodies.pass_messages, [3, 700_001], torch.bfloat16)


def test_a_group_for_two_purposes_is_one(processes: RankProcesses) -> None:
    store = new_store()
    layout = ParallelLayout(expert=2, sequence=2)
    processes.run(open_connection, How(layout, [HERE] * 4, True), store.port)
    assert all(processes.run(has_one_group_for_two))


def has_one_group_for_two(rank: Rank) -> bool:
    ranks = rank.connection.ranks
    return ranks.dense is ranks.experts and ranks.dense is not ranks.sequence


def test_a_closed_connection_leaves_nothing_behind(
    processes: RankProcesses, has_kernels: bool
) -> None:
    processes.connect(How(ParallelLayout(tensor=2, pipeline=2), [HERE] * 4, has_kernels))
    open_now = processes.run(bodies.shared_memory)
    assert all(any("memfd" in name for name in found) == has_kernels for found in open_now)
    assert not any("/dev/shm" in name for found in open_now for name in found)
    processes.run(bodies.close)
    assert processes.run(bodies.shared_memory) == [[]] * 4


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_ends_or_stops_ends_the_waits_for_it(
    has_kernels: bool, number: signal.Signals
) -> None:
    """In a collective, and at the other end of a link."""
    layout = ParallelLayout(tensor=2, pipeline=2)
    receiver, peer, lost = 1, 2, 3
    with RankProcesses(4) as processes:
        processes.connect(How(layout, [HERE] * 4, has_kernels, wait_s=2.0))
        processes.tell(lost, bodies.send_one)
        processes.hear(lost)
        processes.tell(receiver, bodies.receive_until_lost)
        assert processes.hear(receiver) == "received"
        for rank in (peer, lost):
            processes.tell(rank, bodies.exchange_until_lost)
        for rank in (peer, lost):
            assert processes.hear(rank) == "exchanging"
        processes.signal(lost, number)
        assert processes.hear(peer).startswith("group of 2, rank 0: ")
        assert processes.hear(receiver).startswith("link between stages: ")
        processes.tell(peer, bodies.wait_in_vain)
        assert processes.hear(peer) != "nothing", "it stays lost"


def test_an_abort_ends_the_waits_of_all_ranks_that_share_memory() -> None:
    with RankProcesses(3) as processes:
        processes.connect(How(ParallelLayout(tensor=3), [HERE] * 3, True))
        for rank in (0, 1):
            processes.tell(rank, bodies.wait_in_vain)
        processes.tell(2, bodies.abort)
        for rank in (0, 1):
            assert processes.hear(rank).endswith("the exchange was aborted")


def test_an_abort_ends_the_waits_of_this_rank(has_kernels: bool) -> None:
    """For a rank that has stopped, long before their limit; and what follows does not wait."""
    layout, kept, stopped = ParallelLayout(sequence=2, pipeline=2), (0, 1), (2, 3)
    with RankProcesses(4) as processes:
        processes.connect(How(layout, [HERE] * 4, has_kernels, wait_s=10 * ANSWER_S))
        for rank in stopped:
            processes.signal(rank, signal.SIGSTOP)
        for rank in kept:
            processes.tell(rank, bodies.abort_while_receiving)
        for rank in kept:
            assert processes.hear(rank).endswith("the exchange was aborted")
            processes.tell(rank, bodies.close)
            processes.hear(rank)


def test_after_an_abort_nothing_is_exchanged(tensor_ranks: RankProcesses) -> None:
    tensor_ranks.run(bodies.abort)
    for found in tensor_ranks.run(bodies.wait_in_vain):
        assert found.endswith("the exchange was aborted")


def meeting(**changes: object) -> Meeting:
    fields: dict[str, object] = {
        "layout": ParallelLayout(tensor=2),
        "rank": 0,
        "addresses": [HERE, HERE],
        "store": new_store(),
        "device": torch.device("cpu"),
        "library": load_library(),
        "come_s": 0.3,
        "wait_s": 5.0,
    }
    return Meeting(**(fields | changes))  # type: ignore[arg-type]


def test_a_rank_that_never_comes_is_lost() -> None:
    with pytest.raises(RankLostError, match=r"rank 1 has not come within 0\.3 s"):
        connect(meeting())


def test_a_rank_that_goes_while_connecting_is_lost(has_kernels: bool) -> None:
    before = bodies.shared_memory(None)  # type: ignore[arg-type]  # of tests before this one
    store = new_store()
    store.set("kernels of 1", str(int(has_kernels)))  # and nothing more
    library = load_library() if has_kernels else None
    with pytest.raises(RankLostError, match="rank"):
        connect(meeting(store=store, library=library))
    assert set(bodies.shared_memory(None)) <= set(before)  # type: ignore[arg-type]


def test_one_rank_alone_needs_nobody() -> None:
    with connect(meeting(layout=ParallelLayout(), addresses=[HERE])) as connection:
        x = torch.ones(3)
        connection.ranks.dense.all_reduce(x)
        connection.ranks.check()
        assert x.tolist() == [1, 1, 1]


def test_addresses_have_interfaces() -> None:
    assert interface_of(HERE) == interface_of("localhost") == "lo"
    with pytest.raises(ValueError, match=r"'192\.0\.2\.7': expected one of this machine"):
        interface_of("192.0.2.7")
    with pytest.raises(ValueError, match=r"'no such host\.invalid'"):
        interface_of("no such host.invalid")


def another_address() -> str:
    """Of this machine, by another interface; skips the test where there is none."""
    for name, entries in psutil.net_if_addrs().items():
        for entry in entries:
            if entry.family == socket.AF_INET and name != "lo":
                return entry.address
    pytest.skip("needs a second network interface")
