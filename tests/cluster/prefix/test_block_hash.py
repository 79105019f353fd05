"""Hashes of blocks: the values that replicas, routers and Redis have agreed on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.prefix.block_hash import BlockHasher, BlockHashes, block_hashes, root_hash

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=60)
NO = st.just(list[int]())


@given(tokens=TOKENS, block_size=st.integers(1, 20), start=st.integers(0, 60))
def test_blocks_are_named_alike_at_once_one_by_one_and_after_a_longer_prefix(
    tokens: list[int], block_size: int, start: int
) -> None:
    root = root_hash("model", block_size)
    hashes = block_hashes(root, tokens, block_size)
    assert len(hashes) == len(set(hashes)) == len(tokens) // block_size
    assert all(len(found) == 16 for found in hashes)
    hasher, start = BlockHasher(root), start - start % block_size
    begun = hasher.next(tokens[:start], block_size)
    assert begun + hasher.copy().next(tokens[start:], block_size) == hashes
    assert begun + hasher.next(tokens[start:], block_size) == hashes


@given(length=st.integers(0, 4000), block_size=st.sampled_from([1, 7, 16]), data=st.data())
def test_a_hash_is_the_same_whenever_it_is_asked_for(
    length: int, block_size: int, data: st.DataObject
) -> None:
    root = root_hash("model", block_size)
    hashes = block_hashes(root, range(length), block_size)
    lazy = BlockHashes(root, range(length), block_size)
    assert len(lazy) == len(hashes)
    for index in data.draw(st.lists(st.integers(-len(hashes), len(hashes) - 1)) if hashes else NO):
        assert lazy[index] == hashes[index]
    with pytest.raises(IndexError):
        lazy[len(hashes)]
    assert list(lazy) == lazy[:] == hashes


@given(changed=st.integers(0, 63))
def test_a_hash_stands_for_all_tokens_up_to_its_blocks_end(changed: int) -> None:
    prompt = list(range(64))
    other = [*prompt[:changed], 99, *prompt[changed + 1 :]]
    ours, theirs = (block_hashes(b"r", tokens, 16) for tokens in (prompt, other))
    same = [one == two for one, two in zip(ours, theirs, strict=True)]
    assert same == [block < changed // 16 for block in range(4)]


def test_values_stay_what_they_are() -> None:
    """Components of different versions name the same block alike."""
    root = root_hash("model", 4)
    assert root.hex() == "841112906cbefc56e0d2a4dd944b4e2c"
    last = block_hashes(root, range(1, 10), 4)[-1]
    assert last.hex() == "061ea03612716fb876cfbb67eddc03be"


def test_tenants_adapters_models_and_block_sizes_do_not_meet() -> None:
    roots = {
        root_hash("model", 16),
        root_hash("model", 32),
        root_hash("model", 16, adapter="a"),
        root_hash("model", 16, salt=b"a"),
        root_hash("models", 16),
    }
    assert len(roots) == 5


@pytest.mark.parametrize("token_id", [-1, 2**32])
def test_token_ids_that_have_no_32_bits_are_refused(token_id: int) -> None:
    with pytest.raises(OverflowError):
        block_hashes(b"", [token_id], 1)
