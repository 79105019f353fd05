"""Hashes of blocks: the values that replicas, routers and Redis have agreed on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.prefix.block_hash import block_hash, block_hashes, root_hash

TOKENS = st.lists(st.integers(0, 2**32 - 1), max_size=60)


@given(tokens=TOKENS, block_size=st.integers(1, 20))
def test_hashes_of_a_prompt_are_its_blocks_chained(tokens: list[int], block_size: int) -> None:
    root = parent = root_hash("model", block_size)
    hashes = block_hashes(root, tokens, block_size)
    assert len(hashes) == len(tokens) // block_size
    for number, found in enumerate(hashes):
        parent = block_hash(parent, tokens[number * block_size : (number + 1) * block_size])
        assert found == parent
        assert len(found) == 16


def test_values_stay_what_they_are() -> None:
    """Components of different versions name the same block alike."""
    root = root_hash("model", 4)
    assert root.hex() == "cac286519f4ac7eecd7a6395b453029e"
    last = block_hashes(root, range(1, 10), 4)[-1]
    assert last.hex() == "d87de61f48addc51596ff0d88d8d202a"


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
