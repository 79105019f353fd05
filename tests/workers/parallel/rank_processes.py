"""Ranks that are processes: each does what it is told, and tells what came out."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection as Pipe
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch._C._distributed_c10d import TCPStore

from workers.kernels.library import load_library
from workers.parallel.connect import Connection, Meeting, connect
from workers.parallel.layout import ParallelLayout

ANSWER_S = 60.0
"""For whatever a rank is told: much longer than it takes."""

_WAIT_S = 20.0
"""For each other, where nobody fails."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])  # torch is imported once


class Rank:
    """What a rank's process holds between two things that it is told."""

    def __init__(self, rank: int, answers: Pipe) -> None:
        self.rank = rank
        self.answers = answers
        self.opened: Connection | None = None

    @property
    def connection(self) -> Connection:
        assert self.opened is not None, "connect first"
        return self.opened


class How(NamedTuple):
    """How ranks are to connect."""

    layout: ParallelLayout
    addresses: Sequence[str]
    has_kernels: bool
    wait_s: float = _WAIT_S
    come_s: float = _WAIT_S


class RankProcesses:
    """A context manager, which ends the processes."""

    def __init__(self, count: int) -> None:
        self._orders: list[Pipe] = []
        self._answers: list[Pipe] = []
        self._processes = []
        for rank in range(count):
            orders, to_rank = _context.Pipe(duplex=False)
            from_rank, answers = _context.Pipe(duplex=False)
            process = _context.Process(target=_serve, args=(rank, orders, answers), daemon=True)
            process.start()
            orders.close()
            answers.close()
            self._orders.append(to_rank)
            self._answers.append(from_rank)
            self._processes.append(process)

    def tell(self, rank: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Have a rank call a function of a module with its Rank and these arguments."""
        self._orders[rank].send((function, arguments))

    def hear(self, rank: int) -> Any:
        """What the rank's next call returned, or said before. AssertionError for what it raised."""
        kind, value = self._answer(rank)
        assert kind != "raised", value
        return value

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What all ranks return."""
        for rank in range(len(self._processes)):
            self.tell(rank, function, *arguments)
        answers = [self._answer(rank) for rank in range(len(self._processes))]
        raised = [value for kind, value in answers if kind == "raised"]
        assert not raised, "\n".join(raised)
        return [value for _, value in answers]

    def connect(self, how: How) -> list[list[str]]:
        """Connect them anew; the types of each rank's groups and links."""
        self._store = new_store()  # until the next one: others may still read it
        return self.run(open_connection, how, self._store.port)

    def signal(self, rank: int, number: signal.Signals) -> None:
        pid = self._processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def _answer(self, rank: int) -> tuple[str, Any]:
        assert self._answers[rank].poll(ANSWER_S), f"rank {rank} does not answer"
        kind, value = self._answers[rank].recv()
        return kind, f"rank {rank}: {value}" if kind == "raised" else value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def new_store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def open_connection(rank: Rank, how: How, port: int) -> list[str]:
    if rank.opened is not None:
        rank.opened.close()
    meeting = Meeting(
        layout=how.layout,
        rank=rank.rank,
        addresses=how.addresses,
        store=TCPStore("127.0.0.1", port, timeout=timedelta(seconds=ANSWER_S)),
        device=torch.device("cpu"),
        library=load_library() if how.has_kernels else None,
        come_s=how.come_s,
        wait_s=how.wait_s,
    )
    rank.opened = connect(meeting)
    ranks = rank.opened.ranks
    parts = (ranks.dense, ranks.experts, ranks.sequence, ranks.previous, ranks.following)
    return [type(part).__name__ for part in parts]


def _serve(number: int, orders: Pipe, answers: Pipe) -> None:
    torch.set_num_threads(1)
    rank = Rank(number, answers)
    while True:
        try:
            function, arguments = orders.recv()
        except EOFError:  # the test has ended
            return
        try:
            answers.send(("returned", function(rank, *arguments)))
        except BaseException:
            answers.send(("raised", traceback.format_exc()))
