"""What Ray's processes read from the environment; to be set before Ray is imported."""

import os

_ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Process titles must not overwrite the environment, by which the reaper knows its processes.
    "SPT_NOENV": "1",
}
_SEVERAL_MACHINES = {
    # A machine that does not answer is lost after some 4 s; with Ray's own figures, after 64 s.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    # Ray would serve its metrics on all interfaces, to whoever asks.
    "RAY_enable_metrics_collection": "0",
}


def prepare_alone(token: str) -> None:
    """For a cluster on one machine."""
    os.environ.update(_ALWAYS)
    use_token(token)


def prepare_shared(token: str) -> None:
    """For a cluster of several machines, all of which have this token."""
    os.environ.update(_ALWAYS, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    for name, value in _SEVERAL_MACHINES.items():
        os.environ.setdefault(name, value)


def use_token(token: str) -> None:
    """Have Ray authenticate its processes by this token, unless the environment says otherwise.

    Local clusters switch that on by themselves, and keep the token in the home directory, where
    the next cluster's processes would find the wrong one: so we bring our own.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", token)
