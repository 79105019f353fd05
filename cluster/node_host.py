"""The address of this machine that servers of a replica bind to, and that others reach them by."""

from cluster.settings import Settings

_LOOPBACK = "127.0.0.1"


def node_host(settings: Settings) -> str:
    """replica.host, or what its `auto` means in this process.

    On a lone machine that is loopback. In a cluster of several it is the address by which Ray knows
    this machine; then the process has to be one of Ray's.
    """
    if settings.replica.host != "auto":
        return settings.replica.host
    if not settings.spans_machines:
        return _LOOPBACK
    import ray  # noqa: PLC0415 - takes a while

    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]
