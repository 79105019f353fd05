"""Ranks that are threads of one process, in plain torch: for tests of what ranks compute."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from queue import Empty, Queue
from threading import Barrier, BrokenBarrierError
from typing import TypeVar

import torch

from workers.parallel.group import Group, Link, RankLostError, Ranks, SoloGroup
from workers.parallel.layout import ParallelLayout

T = TypeVar("T")
_LIMIT_S = 60.0


class _Meeting:
    """Where the threads of one group lay down what the others take."""

    def __init__(self, size: int) -> None:
        self.barrier = Barrier(size, timeout=_LIMIT_S)
        self.slots: list[list[torch.Tensor]] = [[] for _ in range(size)]


class ThreadGroup:
    """A Group between threads."""

    def __init__(self, meeting: _Meeting, rank: int) -> None:
        self._meeting = meeting
        self.rank = rank
        self.size = len(meeting.slots)

    def all_reduce(self, x: torch.Tensor) -> None:
        """See Group."""
        total = torch.zeros_like(x, dtype=torch.float32 if x.is_floating_point() else x.dtype)
        for (part,) in self._exchange([x]):
            total += part
        x.copy_(total)

    def all_gather(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """See Group."""
        for row, (part,) in zip(out, self._exchange([x]), strict=False):
            row.copy_(part)

    def all_to_all(
        self,
        x: torch.Tensor,
        counts: Sequence[int],
        out: torch.Tensor,
        out_counts: Sequence[int],
    ) -> None:
        """See Group."""
        everyone = self._exchange(list(x.split_with_sizes(list(counts))))
        ends = list(accumulate(out_counts))
        for parts, end, count in zip(everyone, ends, out_counts, strict=False):
            out[end - count : end].copy_(parts[self.rank])

    def check(self) -> None:
        """See Group."""
        if self._meeting.barrier.broken:
            raise RankLostError("another thread of the group has failed")

    def abort(self) -> None:
        """Let no thread wait for this one."""
        self._meeting.barrier.abort()

    def _exchange(self, mine: list[torch.Tensor]) -> list[list[torch.Tensor]]:
        # What everyone has laid down, in the order of ranks; nothing once the group has failed.
        meeting = self._meeting
        meeting.slots[self.rank] = [part.clone() for part in mine]
        try:
            meeting.barrier.wait()
            everyone = list(meeting.slots)
            meeting.barrier.wait()
        except BrokenBarrierError:
            return []
        return everyone


class ThreadLink:
    """A Link between threads: both ends are one object."""

    def __init__(self) -> None:
        self._messages: Queue[torch.Tensor | None] = Queue()
        self._has_failed = False

    def send(self, x: torch.Tensor) -> None:
        """See Link."""
        self._messages.put(x.clone())

    def receive(self, out: torch.Tensor) -> None:
        """See Link."""
        try:
            message = self._messages.get(timeout=_LIMIT_S)
        except Empty:
            message = None
        if message is None:
            self._has_failed = True
            self.check()
        else:
            out.copy_(message)

    def check(self) -> None:
        """See Link."""
        if self._has_failed:
            raise RankLostError("the stage before has failed")

    def abort(self) -> None:
        """Let no thread wait for a message."""
        self._has_failed = True
        self._messages.put(None)


def make_ranks(layout: ParallelLayout) -> list[Ranks]:
    """All ranks of a layout, each for a thread of its own, in the order of rank numbers."""
    meetings: dict[tuple[str, tuple[int, ...]], _Meeting] = {}
    links: dict[int, ThreadLink] = {}

    def group(kind: str, members: tuple[int, ...], rank: int) -> Group:
        if len(members) == 1:
            return SoloGroup()
        meeting = meetings.setdefault((kind, members), _Meeting(len(members)))
        return ThreadGroup(meeting, members.index(rank))

    def link(receiver: int | None) -> Link | None:
        return None if receiver is None else links.setdefault(receiver, ThreadLink())

    ranks = []
    for rank in range(layout.world_size):
        place = layout.place(rank)
        has_previous = layout.neighbour(place, -1) is not None
        ranks.append(
            Ranks(
                layout,
                place,
                group("dense", layout.dense_group(place), rank),
                group("experts", layout.expert_group(place), rank),
                group("sequence", layout.sequence_group(place), rank),
                link(rank) if has_previous else None,
                link(layout.neighbour(place, 1)),
            )
        )
    return ranks


def run_ranks(layout: ParallelLayout, body: Callable[[Ranks], T]) -> list[T]:
    """What `body` returns for each rank, run in a thread each.

    Raises what the first rank to fail has raised; the others' waits end.
    """
    ranks = make_ranks(layout)
    failures: list[BaseException] = []

    def run(one: Ranks) -> T:
        try:
            return body(one)
        except BaseException as error:
            failures.append(error)
            for other in ranks:
                _abort(other)
            raise

    with ThreadPoolExecutor(layout.world_size) as threads:
        futures = [threads.submit(run, one) for one in ranks]
    if failures:
        raise failures[0]
    return [future.result() for future in futures]


def _abort(ranks: Ranks) -> None:
    for part in (ranks.dense, ranks.experts, ranks.sequence, ranks.previous, ranks.following):
        if isinstance(part, ThreadGroup | ThreadLink):
            part.abort()
