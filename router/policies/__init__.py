"""How a replica is chosen for a request."""

from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType
from typing import Final

from router.policies.adapter import AdapterAffinity
from router.policies.least_loaded import LeastLoaded
from router.policies.policy import C, Candidate, Choice, Policy
from router.policies.power_of_two import PowerOfTwo
from router.policies.prefix import PrefixAware, Prefixes
from router.policies.random_choice import RandomChoice
from router.policies.replica_load import ReplicaLoad
from router.policies.round_robin import RoundRobin
from router.policies.route_request import RouteRequest
from router.policies.session import Session

POLICIES: Final[Mapping[str, Callable[[Random, Prefixes], Policy]]] = MappingProxyType(
    {
        "round_robin": lambda random, prefixes: RoundRobin(),
        "random": lambda random, prefixes: RandomChoice(random),
        "power_of_two": lambda random, prefixes: PowerOfTwo(random),
        "least_loaded": lambda random, prefixes: LeastLoaded(random),
        "session": lambda random, prefixes: Session(random),
        "adapter": lambda random, prefixes: AdapterAffinity(random),
        "prefix": PrefixAware,
    }
)
"""Makers of policies by the name they have in the settings."""

__all__ = [
    "POLICIES",
    "C",
    "Candidate",
    "Choice",
    "Policy",
    "Prefixes",
    "ReplicaLoad",
    "RouteRequest",
]
