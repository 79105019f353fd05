"""The process that runs this machine's part of a Ray cluster: `python -m cluster.ray_node_main`.

Takes a NodeSpec as JSON from standard input, and prints NodeReports as lines of JSON. It starts
Ray's own processes with Ray's own code and ends when this machine is no longer part of the cluster;
they end with it, even if it is killed. SIGTERM has this machine leave: its replicas finish first.
"""

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from typing import Any

from cluster.cluster_card import ClusterCard, read_card, versions_here, write_card
from cluster.ray_node import HeadUnreachableError, JoinError, NodeReport, NodeSpec

_CONNECT_TIMEOUT_S = 3.0
_CALL_TIMEOUT_S = 2.0
_CARD_TIMEOUT_S = 60.0
"""A head answers before it has written its card."""
_POLL_S = 0.5
_MIGRATION_S = 10.0
"""How long a machine that leaves waits for others to take up its replicas."""
_STOP_MARGIN_S = 5.0
"""Beyond the drain's own limit; what Serve is told when it deploys them."""


def main() -> None:
    """Be part of the cluster, until told to leave or lost."""
    spec = NodeSpec.model_validate_json(sys.stdin.buffer.read())
    # Ray then starts its agent without servers: they would listen on all interfaces.
    sys.modules["ray.dashboard.optional_deps"] = None  # type: ignore[assignment]
    try:
        node = _Node(spec)
    except HeadUnreachableError as error:
        _say(NodeReport(event="unreachable", message=str(error)))
        return
    except JoinError as error:
        _say(NodeReport(event="refused", message=str(error)))
        return
    _say(NodeReport(event="up"))
    if lost := node.run():
        _say(NodeReport(event="lost", message=lost))


class _Node:
    def __init__(self, spec: NodeSpec) -> None:
        """Start Ray here. Raises JoinError."""
        self._is_head = spec.is_head
        self._told_to_leave = False
        if spec.is_head:
            self._ray = _start(spec)
            card = ClusterCard(versions=versions_here(), drain_timeout_s=spec.drain_timeout_s)
            write_card(self._ray.get_gcs_client(), card)
        else:
            card = _look_up(spec.head)
            self._ray = _start(spec)
        self._drain_timeout_s = card.drain_timeout_s
        signal.signal(signal.SIGTERM, self._on_signal)

    def run(self) -> str:
        """Return when this machine has left, or why it is no longer part of the cluster."""
        lost = ""
        while not self._told_to_leave and not lost:
            time.sleep(_POLL_S)
            lost = self._why_lost()
        if self._told_to_leave and not lost and not self._is_head:
            self._drain()
        self._ray.kill_all_processes(check_alive=False, allow_graceful=not lost)
        return lost

    def _on_signal(self, *_: object) -> None:
        self._told_to_leave = True

    def _why_lost(self) -> str:
        if dead := [kind for kind, _ in self._ray.dead_processes()]:
            return f"Ray's {dead[0]} has ended"
        return "" if self._is_head else self._why_given_up()

    def _why_given_up(self) -> str:
        """Why the head no longer has this machine; empty if it has, or if nobody can be asked.

        Ray's own processes go on without end when they are given up for a while.
        """
        from ray import NodeID  # noqa: PLC0415 - not before the environment of Ray is known
        from ray.exceptions import AuthenticationError, RpcError  # noqa: PLC0415

        node_id = NodeID.from_hex(self._ray.node_id)
        try:
            [alive] = self._ray.get_gcs_client().check_alive([node_id], timeout=_CALL_TIMEOUT_S)
        except AuthenticationError:
            return "another head has taken the place of the one that was joined"
        except RpcError:
            return ""
        return "" if alive else "the head had lost sight of this machine, and given it up"

    def _drain(self) -> None:
        """Have replicas started elsewhere and those of this machine finish, as far as time allows.

        Ray ends its process here when nothing is left to run.
        """
        from ray.core.generated import autoscaler_pb2  # noqa: PLC0415
        from ray.exceptions import AuthenticationError, RpcError  # noqa: PLC0415

        # Serve stops replicas so long before the end that they can finish.
        allowed_s = _MIGRATION_S + self._drain_timeout_s + _STOP_MARGIN_S
        end = time.time() + allowed_s
        # Who cannot be told will see it.
        with suppress(AuthenticationError, RpcError):
            self._ray.get_gcs_client().drain_node(
                self._ray.node_id,
                autoscaler_pb2.DrainNodeReason.Value(  # type: ignore[attr-defined]
                    "DRAIN_NODE_REASON_PREEMPTION"
                ),
                "the machine leaves the cluster",
                int(end * 1000),
                timeout=_CALL_TIMEOUT_S,
            )
            while time.time() < end and not self._why_lost():
                time.sleep(_POLL_S)


def _look_up(head: str) -> ClusterCard:
    """The cluster's card, if this machine may join. Raises JoinError."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # noqa: PLC0415
    from ray.exceptions import AuthenticationError, RpcError  # noqa: PLC0415

    host, _, port = head.rpartition(":")
    try:
        # Ray itself would try for 40 s.
        socket.create_connection((host, int(port)), _CONNECT_TIMEOUT_S).close()
        client = GcsClient(address=head)
        end = time.monotonic() + _CARD_TIMEOUT_S
        while (card := read_card(client)) is None and time.monotonic() < end:
            time.sleep(_POLL_S)
    except OSError as error:
        raise HeadUnreachableError(f"{head} cannot be reached: {error}") from error
    except AuthenticationError as error:
        raise JoinError(f"{head}: the token is not the one of its cluster") from error
    except RpcError as error:
        raise HeadUnreachableError(f"{head} does not answer as a head does: {error}") from error
    if card is None:
        raise JoinError(f"{head}: a Ray cluster, but none of `trunkline serve --node-address`")
    if card.versions != (here := versions_here()):
        raise JoinError(f"{head} runs {card.versions}, this machine {here}; they have to be equal")
    return card


def _start(spec: NodeSpec) -> Any:
    """A ray._private.node.Node whose processes end with this one. Raises JoinError."""
    from ray._private.node import Node  # noqa: PLC0415
    from ray._private.parameter import RayParams  # noqa: PLC0415

    parameters: dict[str, Any] = {
        "gcs_server_port": int(spec.head.rpartition(":")[2]) if spec.is_head else None,
        "gcs_address": None if spec.is_head else spec.head,
        "node_ip_address": spec.address,
        "num_cpus": spec.num_cpus,
        "labels": spec.labels,
        "object_store_memory": spec.object_store_bytes,
        "temp_dir": str(spec.directory),
        # Neither a dashboard, nor scaling, nor printing what replicas say is Ray's task here.
        "include_dashboard": False,
        "no_monitor": True,
        "include_log_monitor": False,
    }
    try:
        return Node(
            RayParams(**parameters), head=spec.is_head, shutdown_at_exit=False, spawn_reaper=True
        )
    except Exception as error:
        # Whatever it is, this machine cannot take part, and the message is all there is to know.
        raise JoinError(f"Ray does not start: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _say(report: NodeReport) -> None:
    # The parent may be gone; then so are we, soon.
    with suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), report.model_dump_json().encode() + b"\n")


if __name__ == "__main__":
    main()
