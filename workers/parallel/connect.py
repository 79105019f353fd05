"""How the ranks of a replica find each other."""

import ctypes
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from time import monotonic, sleep
from types import TracebackType
from typing import Self, TypeVar

import psutil
import torch
from torch import distributed
from torch._C._distributed_c10d import Store
from torch.distributed import ProcessGroup

from workers.kernels.cpu_collectives import CpuCollectives
from workers.kernels.library import Library
from workers.parallel.group import Group, Link, RankLostError, Ranks, SoloGroup
from workers.parallel.layout import ParallelLayout
from workers.parallel.segment import Segment
from workers.parallel.shared_group import SharedMemoryGroup
from workers.parallel.shared_link import SharedMemoryLink
from workers.parallel.torch_group import TorchGroup
from workers.parallel.torch_link import TorchLink

_POLL_S = 0.01

Members = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Meeting:
    """What one rank needs to find the others."""

    layout: ParallelLayout
    rank: int
    addresses: Sequence[str]
    """Of every rank's node, by which that is reached. Ranks with the same one share memory."""
    store: Store
    """Of this connection only: a TCPStore, or a PrefixStore on one."""
    device: torch.device
    library: Library | None
    """The CPU kernels; ranks that lack them cannot share memory."""
    come_s: float
    """How long all of them together may take to connect."""
    wait_s: float
    """How long each may keep another waiting afterwards."""
    check: Callable[[], None] | None = None
    """Called while others are waited for; what it raises ends that."""


_Part = SharedMemoryGroup | SharedMemoryLink | TorchGroup | TorchLink
_P = TypeVar("_P", bound=_Part)


class Connection:
    """One rank's ranks, and what they stand on. A context manager, which closes it."""

    def __init__(self, ranks: Ranks, parts: Sequence[_Part], opened: ExitStack) -> None:
        self.ranks = ranks
        self._parts = parts
        self._opened = opened

    def abort(self) -> None:
        """End all waits of this rank, and of those it shares memory with; from any thread."""
        for part in self._parts:
            part.abort()

    def close(self) -> None:
        """Let go of memory and sockets, once nothing is exchanged any more."""
        self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def connect(meeting: Meeting) -> Connection:
    """Connect one rank with all others, which call this too.

    Ranks of a group share memory if they all have the same node address and the CPU kernels, and
    compute on the CPU. Other groups speak gloo, or nccl on GPUs, which one process can do for one
    connection at a time.

    Raises RankLostError if not all ranks come in time, ValueError if an address is not of this
    machine where it has to be, SegmentError if ranks with one address cannot share memory.
    """
    with ExitStack() as opened:
        connector = _Connector(meeting, opened)
        ranks = connector.connect()
        return Connection(ranks, connector.parts, opened.pop_all())


class _Connector:
    def __init__(self, meeting: Meeting, opened: ExitStack) -> None:
        self._meeting = meeting
        self._layout = meeting.layout
        self._everyone = range(meeting.layout.world_size)
        self._opened = opened
        self._deadline = monotonic() + meeting.come_s
        self._collectives = None if meeting.library is None else CpuCollectives(meeting.library)
        self._process_groups: dict[Members, ProcessGroup] = {}
        self.parts: list[_Part] = []

    def connect(self) -> Ranks:
        layout, place = self._layout, self._layout.place(self._meeting.rank)
        self._tell("kernels", str(int(self._collectives is not None)))
        self._have_kernels = [self._hear("kernels", rank) == "1" for rank in self._everyone]
        self._make_process_groups()
        groups = {members: self._group(members) for members in self._groups_of(place.rank)}
        previous, following = layout.neighbour(place, -1), layout.neighbour(place, 1)
        ranks = Ranks(
            layout,
            place,
            groups[layout.dense_group(place)],
            groups[layout.expert_group(place)],
            groups[layout.sequence_group(place)],
            None if previous is None else self._link((previous, place.rank)),
            None if following is None else self._link((place.rank, following)),
        )
        self._tell("connected", "")
        for rank in self._everyone:
            self._hear("connected", rank)
        return ranks

    def _groups_of(self, rank: int) -> list[Members]:
        # A group that is there for two purposes is one: all its ranks use it in the same order.
        place, layout = self._layout.place(rank), self._layout
        groups = {layout.dense_group(place), layout.expert_group(place)}
        return sorted(groups | {layout.sequence_group(place)})

    def _all_exchanges(self) -> list[Members]:
        # Of all ranks, in an order on which all agree: groups, then links as sender and receiver.
        groups = {group for rank in self._everyone for group in self._groups_of(rank)}
        following = [
            (rank, self._layout.neighbour(self._layout.place(rank), 1)) for rank in self._everyone
        ]
        links = [(rank, receiver) for rank, receiver in following if receiver is not None]
        return [*sorted(group for group in groups if len(group) > 1), *links]

    def _shares_memory(self, members: Members) -> bool:
        return (
            self._meeting.device.type == "cpu"
            and all(self._have_kernels[rank] for rank in members)
            and len({self._meeting.addresses[rank] for rank in members}) == 1
        )

    def _group(self, members: Members) -> Group:
        if len(members) == 1:
            return SoloGroup()
        meeting = self._meeting
        if self._collectives is not None and self._shares_memory(members):
            num_bytes = SharedMemoryGroup.segment_bytes(self._collectives, len(members))
            segment = self._segment(members, num_bytes)
            place = members.index(meeting.rank)
            group = SharedMemoryGroup(
                self._collectives, segment, place, len(members), meeting.wait_s
            )
            return self._kept(group)
        return self._kept(TorchGroup(self._process_groups[members]))

    def _link(self, members: Members) -> Link:
        if self._collectives is not None and self._shares_memory(members):
            segment = self._segment(members, SharedMemoryLink.segment_bytes(self._collectives))
            return self._kept(SharedMemoryLink(self._collectives, segment, self._meeting.wait_s))
        return self._kept(TorchLink(self._process_groups[members]))

    def _kept(self, part: _P) -> _P:
        self.parts.append(part)
        return part

    def _segment(self, members: Members, num_bytes: int) -> Segment:
        key = f"segment {members}"
        if members[0] == self._meeting.rank:
            segment = Segment.create(num_bytes)
            self._tell(key, segment.path)
        else:
            segment = Segment.open(self._hear(key, members[0]), num_bytes)
        self._opened.callback(segment.close)
        return segment

    def _make_process_groups(self) -> None:
        meeting = self._meeting
        wanted = [each for each in self._all_exchanges() if not self._shares_memory(each)]
        if not wanted:
            return
        on_gpu = meeting.device.type != "cpu"
        if not on_gpu:
            os.environ["GLOO_SOCKET_IFNAME"] = interface_of(meeting.addresses[meeting.rank])
        try:
            distributed.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=meeting.store,
                rank=meeting.rank,
                world_size=len(self._everyone),
                timeout=self._rest(),
                device_id=meeting.device if on_gpu else None,
            )
            self._opened.callback(_leave_process_groups, self.parts, self._process_groups)
            for members in wanted:
                group = distributed.new_group(list(members), timeout=self._rest())
                if meeting.rank in members:
                    group.set_timeout(timedelta(seconds=meeting.wait_s))
                    self._process_groups[members] = group
        except RuntimeError as error:  # torch has no type of its own for the errors of a backend
            raise RankLostError(f"rank {meeting.rank} found not all others: {error}") from error

    def _tell(self, what: str, value: str) -> None:
        try:
            self._meeting.store.set(f"{what} of {self._meeting.rank}", value)
        except RuntimeError as error:
            raise RankLostError(f"the store has ended: {error}") from error

    def _hear(self, what: str, rank: int) -> str:
        key = f"{what} of {rank}"
        store, check = self._meeting.store, self._meeting.check
        try:
            while not store.check([key]):
                if check is not None:
                    check()
                if monotonic() > self._deadline:
                    limit = f"{self._meeting.come_s:g} s"
                    raise RankLostError(f"rank {rank} has not come within {limit}")
                sleep(_POLL_S)
            return store.get(key).decode()
        except RuntimeError as error:
            raise RankLostError(f"the store has ended: {error}") from error

    def _rest(self) -> timedelta:
        return timedelta(seconds=max(self._deadline - monotonic(), 0.001))


def _leave_process_groups(
    parts: Sequence[_Part], process_groups: dict[Members, ProcessGroup]
) -> None:
    has_failed = False
    for part in parts:
        try:
            part.check()
        except RankLostError:
            has_failed = True
        if isinstance(part, TorchGroup | TorchLink):
            part.close()

    distributed.destroy_process_group()
    if has_failed:
        # Gloo's own threads may be in a wait until its limit, and whoever lets go last joins them:
        # nobody ever does.
        for group in process_groups.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))
    process_groups.clear()


def interface_of(address: str) -> str:
    """The name of this machine's network interface that has an address, or a host's name's.

    Raises ValueError if there is none.
    """
    try:
        wanted = {str(info[4][0]) for info in socket.getaddrinfo(address, None)}
    except OSError as error:
        raise ValueError(f"node address {address!r}: {error}") from error
    found = {
        entry.address.partition("%")[0]: name
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }
    for each in wanted & found.keys():
        return found[each]
    raise ValueError(f"node address {address!r}: expected one of this machine: {sorted(found)}")
