"""How a replica is chosen for a request."""

from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType
from typing import Final

from router.policies.least_loaded import LeastLoaded
from router.policies.policy import C, Candidate, Choice, Policy
from router.policies.power_of_two import PowerOfTwo
from router.policies.random_choice import RandomChoice
from router.policies.replica_load import ReplicaLoad
from router.policies.round_robin import RoundRobin
from router.policies.route_request import RouteRequest

POLICIES: Final[Mapping[str, Callable[[Random], Policy]]] = MappingProxyType(
    {
        "round_robin": lambda random: RoundRobin(),
        "random": RandomChoice,
        "power_of_two": PowerOfTwo,
        "least_loaded": LeastLoaded,
    }
)
"""Makers of policies by the name they have in the settings."""

__all__ = ["POLICIES", "C", "Candidate", "Choice", "Policy", "ReplicaLoad", "RouteRequest"]
