"""Which models may answer a request for a name."""

import math
from collections.abc import Mapping
from hashlib import blake2b

from cluster.catalog import Entry, Split


def candidates(entries: Mapping[str, Entry], name: str, who: bytes) -> tuple[str, ...]:
    """Names of models, in the order in which they are to be tried; at least one.

    `who` decides what is drawn: the same gets the same as long as weights stay.
    """
    return tuple(dict.fromkeys(_expand(entries, name, who, frozenset())))


def reachable(entries: Mapping[str, Entry], name: str) -> tuple[str, ...]:
    """All models that a request for a name may come to, whoever asks."""
    return tuple(dict.fromkeys(_reach(entries, name, frozenset())))


def choose(weights: Mapping[str, float], name: str, who: bytes) -> str:
    """One of the names, in proportion to their weights.

    By weighted rendezvous hashing (Thaler and Ravishankar 1998; weights as in Schindelhauer and
    Schomaker 2005): when a weight grows, some of those who were elsewhere come to it, and nobody
    else moves.
    """
    return min(weights, key=lambda target: -math.log(_uniform(name, target, who)) / weights[target])


def _expand(
    entries: Mapping[str, Entry], name: str, who: bytes, above: frozenset[str]
) -> list[str]:
    entry = entries.get(name)
    # A name inside its own entry is the model's. Entries in a circle are not made by ours.
    if entry is None or name in above:
        return [name]
    if isinstance(entry, Split):
        targets: tuple[str, ...] = (choose(entry.weights, name, who),)
    else:
        targets = entry.targets
    below = above | {name}
    return [model for target in targets for model in _expand(entries, target, who, below)]


def _reach(entries: Mapping[str, Entry], name: str, above: frozenset[str]) -> list[str]:
    entry = entries.get(name)
    if entry is None or name in above:
        return [name]
    below = above | {name}
    return [model for target in entry.targets for model in _reach(entries, target, below)]


def _uniform(name: str, target: str, who: bytes) -> float:
    """A number in (0, 1), the same for the same arguments everywhere."""
    digest = blake2b(digest_size=8)
    for part in (name.encode(), target.encode(), who):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return (int.from_bytes(digest.digest(), "little") + 0.5) / 2**64
