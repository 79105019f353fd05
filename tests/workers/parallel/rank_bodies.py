"""What tests have ranks do."""

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.workers.parallel.rank_processes import Rank
from workers.kernels.cpu_fused import CpuRowKernels
from workers.kernels.library import load_library
from workers.models.recorder import Recorder
from workers.parallel.group import RankLostError

Counts = Sequence[Sequence[int]]


def random(seed: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """The same on all ranks."""
    return (100 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def all_reduce(rank: Rank, shape: Sequence[int], dtype: torch.dtype) -> bytes:
    """The bits of the sum of random tensors, which is checked."""
    group = rank.connection.ranks.dense
    parts = random(0, dtype, group.size, *shape)
    x = parts[group.rank].clone()
    group.all_reduce(x)
    group.check()
    total = torch.zeros(tuple(shape))
    for part in parts:
        total += part
    assert torch.equal(x, total.to(dtype))
    assert_near(x, parts.double().sum(0), 1e-5 if dtype == torch.float32 else 2**-8)
    return x.reshape(-1).view(torch.uint8).numpy().tobytes()


def all_gather(rank: Rank, shape: Sequence[int], dtype: torch.dtype) -> None:
    group = rank.connection.ranks.dense
    parts = random(1, dtype, group.size, *shape)
    out = torch.empty_like(parts)
    group.all_gather(parts[group.rank].clone(), out)
    group.check()
    assert torch.equal(out, parts)


def all_to_all(rank: Rank, counts: Counts, width: int, dtype: torch.dtype) -> None:
    """Row r of `counts` has the rows that rank r sends to each."""
    group = rank.connection.ranks.dense
    sent = [random(other, dtype, sum(row), width) for other, row in enumerate(counts)]
    out_counts = [row[group.rank] for row in counts]
    out = torch.empty(sum(out_counts), width, dtype=dtype)
    group.all_to_all(sent[group.rank], counts[group.rank], out, out_counts)
    group.check()
    parts = [x.split_with_sizes(list(row)) for x, row in zip(sent, counts, strict=True)]
    assert torch.equal(out, torch.cat([part[group.rank] for part in parts]))


def pass_messages(rank: Rank, lengths: Sequence[int], dtype: torch.dtype) -> None:
    """Down the pipeline, each with one added at every stage."""
    ranks = rank.connection.ranks
    for number, length in enumerate(lengths):
        message = random(number, dtype, length)
        x = message.clone()
        if ranks.previous is not None:
            ranks.previous.receive(x.zero_())
            assert torch.equal(x, message + (ranks.place.stage - 1))
        if ranks.following is not None:
            x.copy_(message + ranks.place.stage)
            ranks.following.send(x)
            x.zero_()
    ranks.check()


def send_ahead(rank: Rank, count: int) -> None:
    """The first stage sends all its messages before the next one takes the first."""
    ranks = rank.connection.ranks
    x = torch.empty(1000)
    if ranks.following is not None:
        for number in range(count):
            ranks.following.send(x.fill_(number))
    ranks.sequence.all_reduce(x)
    if ranks.previous is not None:
        for number in range(count):
            ranks.previous.receive(x)
            assert x.eq(number).all()


def play(rank: Rank) -> None:
    """A norm, a sum over ranks and a norm, recorded where nothing but kernels runs."""
    group = rank.connection.ranks.dense
    library = load_library()
    assert library is not None
    kernels, recorder = CpuRowKernels(library), Recorder(library)
    x, out, weight = torch.empty(4, 64), torch.empty(4, 64), torch.ones(64)

    def step() -> None:
        kernels.add_rms_norm(x, None, weight, 1e-6, out)
        group.all_reduce(out)
        kernels.add_rms_norm(out, None, weight, 1e-6, x)

    for turn in range(5):
        inputs = random(turn, torch.float32, group.size, 4, 64)
        x.copy_(inputs[group.rank])
        recorder.run(0, step)
        group.check()
        total = normed(inputs).sum(0)
        assert_near(x, normed(total).double(), 1e-5)


def assert_near(found: torch.Tensor, exact: torch.Tensor, rtol: float) -> None:
    """What torch.testing does, which takes seconds to import in each process."""
    assert ((found.double() - exact).abs() <= 1e-3 + rtol * exact.abs()).all()


def normed(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x, x.shape[-1:], eps=1e-6)


def exchange_until_lost(rank: Rank) -> str:
    """Sums without end; what `check` says when it ends after all."""
    group = rank.connection.ranks.dense
    x = torch.ones(100_000)
    for turn in range(10**9):
        group.all_reduce(x)
        try:
            group.check()
        except RankLostError as error:
            return str(error)
        if turn == 20:
            rank.answers.send(("said", "exchanging"))
    return "never lost"


def receive_until_lost(rank: Rank) -> str:
    """One message, and what the next one, which never comes, raises."""
    link = rank.connection.ranks.previous
    assert link is not None
    link.receive(torch.empty(10))
    rank.answers.send(("said", "received"))
    try:
        link.receive(torch.empty(10))
    except RankLostError as error:
        return str(error)
    return "never lost"


def send_one(rank: Rank) -> None:
    link = rank.connection.ranks.following
    assert link is not None
    link.send(torch.ones(10))


def wait_in_vain(rank: Rank) -> str:
    """In a collective that not all call; what `check` says afterwards."""
    group = rank.connection.ranks.dense
    group.all_reduce(torch.ones(10))
    try:
        group.check()
    except RankLostError as error:
        return str(error)
    return "nothing"


def abort_while_receiving(rank: Rank) -> str:
    """What a message that never comes raises."""
    ranks = rank.connection.ranks
    ranks.sequence.all_reduce(torch.ones(10))
    thread = threading.Timer(0.1, rank.connection.abort)  # mostly within the wait, or before it
    thread.start()
    try:
        assert ranks.previous is not None
        ranks.previous.receive(torch.empty(10))
    except RankLostError as error:
        return str(error)
    finally:
        thread.join()
    return "nothing"


def abort(rank: Rank) -> None:
    """From another thread than that which computes."""
    thread = threading.Thread(target=rank.connection.abort)
    thread.start()
    thread.join()


def close(rank: Rank) -> None:
    assert rank.opened is not None
    rank.opened.close()
    rank.opened = None


def shared_memory(rank: Rank) -> list[str]:
    """What of /dev/shm, and of our segments, this process has open or mapped.

    Semaphores are those of multiprocessing, which other tests may have left to it.
    """
    mapped = Path("/proc/self/maps").read_text().splitlines()
    names = {line.split(maxsplit=5)[5] for line in mapped if line.count("/")}
    for link in Path("/proc/self/fd").iterdir():
        try:
            names.add(os.readlink(link))
        except FileNotFoundError:  # that of the listing itself
            continue
    ours = (name for name in names if "/dev/shm" in name or "trunkline-" in name)
    return sorted(name for name in ours if not name.startswith("/dev/shm/sem."))
