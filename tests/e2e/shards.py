"""The processes of replicas of several ranks."""

import psutil

from tests.e2e.cluster import Cluster


def shards(cluster: Cluster) -> list[psutil.Process]:
    """All ranks but the leaders."""
    return [p for p in cluster.processes() if "ray::Shard" in " ".join(p.cmdline())]


def shard_of(cluster: Cluster, leader: psutil.Process) -> psutil.Process:
    """The only one that speaks with this leader."""
    ours = {c.laddr for c in leader.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED}
    [shard] = [s for s in shards(cluster) if any(c.raddr in ours for c in s.net_connections("tcp"))]
    return shard
