"""How a gang's ranks connect, once each knows where the others are."""

import socket
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from cluster.settings import EngineSettings
from workers.engine.served_model import device_of
from workers.kernels.library import load_library
from workers.parallel.connect import Connection, Meeting, connect
from workers.parallel.layout import ParallelLayout

CONNECT_S = 30.0
"""For all ranks together."""
EXCHANGE_S = 600.0
"""The longest wait for a rank that is heard of: a stage of the pipeline may take its time over many
tokens. Whoever is not heard of is given up much sooner, and a replica whose step takes too long
(replica.max_step_s)."""


def open_store(node: str) -> TCPStore:
    """On the leader: where ranks leave word for each other, at a free port of the address `node`.

    Raises OSError.
    """
    # Left to itself it would listen at all addresses.
    listener = socket.create_server((node, 0))
    port = listener.getsockname()[1]
    return TCPStore(
        node,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        use_libuv=False,
        timeout=timedelta(seconds=CONNECT_S),
    )


def join_store(address: str) -> TCPStore:
    """On another rank: the leader's store at host:port."""
    host, _, port = address.rpartition(":")
    return TCPStore(
        host, int(port), is_master=False, use_libuv=False, timeout=timedelta(seconds=CONNECT_S)
    )


def connect_rank(
    settings: EngineSettings,
    nodes: Sequence[str],
    rank: int,
    device: int,
    store: TCPStore,
    check: Callable[[], None] | None = None,
) -> Connection:
    """Connect this rank with all others, which do the same.

    Args:
        settings: Of the rank.
        nodes: The address of each rank's machine.
        rank: This one.
        device: Which of its machine's GPUs it takes, where it computes on one and sees several.
        store: The gang's.
        check: Called again and again while others are waited for.

    Raises what `connect` and `check` raise.
    """
    where = device_of(settings)
    if where.type == "cuda":
        # Whoever starts its processes may have given each a GPU and hidden the others.
        where = torch.device("cuda", device if torch.cuda.device_count() > 1 else 0)
        torch.cuda.set_device(where)
    meeting = Meeting(
        layout=ParallelLayout(**settings.parallel.model_dump()),
        rank=rank,
        addresses=nodes,
        store=store,
        device=where,
        library=load_library(),
        come_s=CONNECT_S,
        wait_s=EXCHANGE_S,
        check=check,
    )
    return connect(meeting)
