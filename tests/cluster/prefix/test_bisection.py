"""A few questions tell what asking after every block would."""

from hashlib import blake2b

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.prefix.bisection import bisected_depths
from cluster.prefix.prefix_index import PrefixIndex

HASHES = [
    blake2b(bytes([number % 256, number // 256]), digest_size=16).digest() for number in range(300)
]


def index_of(depths: list[int]) -> PrefixIndex:
    index = PrefixIndex(2**16)
    for depth in depths:
        index.store(index.open_slot(), b"".join(HASHES[:depth]))
    return index


@settings(deadline=None)
@given(depths=st.lists(st.integers(0, 300), max_size=20), length=st.integers(0, 300))
def test_depths_are_those_of_asking_after_every_block(depths: list[int], length: int) -> None:
    index, prompt = index_of(depths), HASHES[:length]
    assert bisected_depths(prompt, index.holders) == index.depths(b"".join(prompt))


@settings(deadline=None)
@given(depth=st.integers(0, 300), holders=st.integers(1, 64))
def test_few_blocks_are_asked_for(depth: int, holders: int) -> None:
    index, asked = index_of([depth] * holders), list[bytes]()

    def ask(block: bytes) -> int:
        asked.append(block)
        return index.holders(block)

    bisected_depths(HASHES, ask)
    assert len(asked) <= (1 if depth == 0 else 11)


def test_a_block_that_only_shares_a_half_of_its_hash_is_another() -> None:
    index = PrefixIndex(2**16)
    index.store(index.open_slot(), b"a" * 16)
    assert index.holders(b"a" * 8 + b"b" * 8) == 0
    assert index.holders(b"b" * 8 + b"a" * 8) == 0
