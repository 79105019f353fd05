"""How deep each replica holds a prompt, by asking after few of its blocks."""

from bisect import bisect_left
from collections.abc import Callable, Sequence


def bisected_depths(hashes: Sequence[bytes], holders: Callable[[bytes], int]) -> dict[int, int]:
    """How many of the first of these blocks each slot holds, of those that hold any.

    `holders` gives the slots that hold a block as bits. Who holds a block holds all before it, so
    the holders of one block after the other only become fewer: where those of two blocks are the
    same, nothing in between has to be asked for. Long prompts cost a few more questions than short
    ones, one for each halving; a prompt that nobody holds costs one.
    """
    depths: dict[int, int] = {}
    if not hashes or not (first := holders(hashes[0])):
        return depths
    last = holders(hashes[-1]) if len(hashes) > 1 else first
    _note(depths, last, len(hashes))
    spans = [(1, first, len(hashes), last)]
    while spans:
        low, at_low, high, at_high = spans.pop()
        if not (going := at_low & ~at_high):
            continue
        if high - low == 1:
            _note(depths, going, low)
            continue
        middle = _between(low, high)
        at_middle = (holders(hashes[middle - 1]) & at_low) | (at_high & at_low)
        spans.append((low, at_low, middle, at_middle))
        spans.append((middle, at_middle, high, at_high))
    return depths


def num_common(one: Sequence[bytes], other: Sequence[bytes], known: int) -> int:
    """How many first blocks two prompts have in common, of which so many are known to be."""
    shorter = min(len(one), len(other))
    places = range(known, shorter)
    return known + bisect_left(places, True, key=lambda place: one[place] != other[place])


def _between(low: int, high: int) -> int:
    """The number between two that most powers of two divide: to go to those first costs no more
    halvings, and their hashes are found from the nearest states."""
    bits = (low ^ (high - 1)).bit_length() - 1
    return (high - 1) >> bits << bits


def _note(depths: dict[int, int], slots: int, depth: int) -> None:
    while slots:
        lowest = slots & -slots
        depths[lowest.bit_length() - 1] = depth
        slots ^= lowest
