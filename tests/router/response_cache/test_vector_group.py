"""A router's copy of a group is what the store has, and its nearest vector is the nearest."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from router.embedder import Floats
from router.response_cache.vector_group import VectorGroup, VectorGroups, to_bytes

SIZE = 8
NAMES = st.lists(st.integers(0, 30), unique=True, max_size=12)


def vector(number: int) -> Floats:
    """Always the same one for a number, of length 1."""
    values = np.random.default_rng(number).normal(size=SIZE)
    found: Floats = (values / np.linalg.norm(values)).astype(np.float32)
    return found


def name(number: int) -> bytes:
    return f"{number:064x}".encode()


def update(group: VectorGroup, version: int, numbers: list[int]) -> None:
    """Bring it up to date as the cache does."""
    names = {name(number): number for number in numbers}
    missing = group.missing(names)
    group.update(b"%d" % version, names, {key: to_bytes(vector(names[key])) for key in missing})


@given(st.lists(NAMES, min_size=1, max_size=5), st.integers(100, 200))
def test_the_nearest_of_what_is_there_now_is_found(states: list[list[int]], asked: int) -> None:
    group = VectorGroup(SIZE)
    for version, numbers in enumerate(states):
        update(group, version, numbers)
    found = group.nearest(vector(asked))
    similarities = {name(n): float(vector(n) @ vector(asked)) for n in states[-1]}
    assert group.num_bytes == len(states[-1]) * SIZE * 4
    if not similarities:
        assert found is None
    else:
        assert found is not None
        assert found.name == max(similarities, key=lambda key: similarities[key])
        np.testing.assert_allclose(found.similarity, similarities[found.name], atol=1e-6)


def test_vectors_that_went_or_are_none_are_left_out() -> None:
    group = VectorGroup(SIZE)
    bad = np.full(SIZE, np.nan, dtype=np.float32)
    values = {
        name(0): None,
        name(1): b"short",
        name(2): to_bytes(bad),
        name(3): to_bytes(vector(3)),
    }
    group.update(b"1", values, values)
    assert group.missing(values) == [name(0), name(1), name(2)]
    found = group.nearest(vector(3))
    assert found is not None
    assert found.name == name(3)


def test_what_another_request_has_brought_meanwhile_is_not_there_twice() -> None:
    group = VectorGroup(SIZE)
    added: dict[bytes, bytes | None] = {name(1): to_bytes(vector(1))}
    for _ in range(2):
        group.update(b"1", added, added)
    assert group.num_bytes == SIZE * 4


def test_a_vector_of_another_size_is_near_to_none() -> None:
    group = VectorGroup(SIZE)
    update(group, 1, [1])
    assert group.nearest(np.ones(1, dtype=np.float32)) is None


def test_groups_not_used_for_longest_are_forgotten_first() -> None:
    groups = VectorGroups(max_bytes=3000)
    for group in ("a", "b"):
        update(groups.of(group, SIZE), 1, [1, 2])
    groups.of("a", SIZE)
    update(groups.of("c", SIZE), 1, [1, 2])
    groups.trim()
    assert groups.of("b", SIZE).version == b""
    assert groups.of("a", SIZE).version == b"1"
    assert groups.of("c", SIZE).version == b"1"
