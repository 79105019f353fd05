"""What a router knows of replicas' caches, and what it only expects."""

import os

import pytest

from cluster.prefix.directory import PrefixDirectory
from cluster.prefix.events import joined

A, B = "a@1", "b@2"
PROMPT = [os.urandom(16) for _ in range(10)]
OTHER = PROMPT[:4] + [os.urandom(16) for _ in range(3)]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(clock: Clock) -> PrefixDirectory:
    return PrefixDirectory(1000, clock)


def test_replicas_are_told_apart_and_those_that_hold_nothing_left_out(
    directory: PrefixDirectory,
) -> None:
    directory.store(A, joined(PROMPT))
    directory.store(B, joined(PROMPT[:3]))
    assert directory.held(PROMPT).depths == {A: 10, B: 3}
    assert directory.held(OTHER).depths == {A: 4, B: 3}
    assert directory.held(OTHER[4:]).depths == {}
    assert directory.held([]).depths == {}
    directory.remove(A, joined(PROMPT[2:]))
    assert directory.held(PROMPT).depths == {A: 2, B: 3}
    directory.clear(B)
    assert directory.held(PROMPT).depths == {A: 2}
    directory.forget(A)
    assert directory.held(PROMPT).depths == {}
    assert directory.num_blocks == 0


def test_what_is_in_host_memory_only_is_held_and_told_apart(directory: PrefixDirectory) -> None:
    directory.store(A, joined(PROMPT))
    directory.store(B, joined(PROMPT[:6]))
    directory.lower(A, joined(PROMPT[4:]))
    assert directory.held(PROMPT) == ({A: 10, B: 6}, {A: 6})
    assert directory.held(PROMPT[:4]) == ({A: 4, B: 4}, {})
    directory.store(A, joined(PROMPT[4:6]))
    directory.remove(A, joined(PROMPT[8:]))
    assert directory.held(PROMPT) == ({A: 8, B: 6}, {A: 2})
    directory.lower(B, joined(PROMPT[:8]))
    assert directory.held(PROMPT) == ({A: 8, B: 8}, {A: 2, B: 8})
    directory.clear(A)
    assert directory.held(PROMPT) == ({B: 8}, {B: 8})
    directory.forget(B)
    directory.store(A, joined(PROMPT[:2]))
    assert directory.held(PROMPT) == ({A: 2}, {})
    assert directory.num_blocks == 2


def test_what_is_expected_is_not_in_host_memory(directory: PrefixDirectory) -> None:
    directory.lower(A, joined(PROMPT[:3]))
    directory.expect(PROMPT, A, 3)
    assert directory.held(PROMPT) == ({A: 10}, {A: 3})


def test_a_prompt_is_expected_at_once_and_for_two_seconds(
    directory: PrefixDirectory, clock: Clock
) -> None:
    directory.expect(PROMPT, A)
    assert directory.held(PROMPT).depths == {A: 10}
    assert directory.held(OTHER).depths == {A: 4}
    clock.now += 1.9
    assert directory.held(PROMPT).depths == {A: 10}
    clock.now += 0.2
    assert directory.held(PROMPT).depths == {}
    assert directory.num_expected == 0


def test_what_is_expected_again_is_expected_for_longer(
    directory: PrefixDirectory, clock: Clock
) -> None:
    directory.expect(PROMPT, A)
    clock.now += 1.5
    directory.expect(OTHER, A)
    clock.now += 1.0
    assert directory.held(PROMPT).depths == {A: 4}
    assert directory.held(OTHER).depths == {A: 7}


def test_expectations_go_on_where_knowledge_ends(directory: PrefixDirectory, clock: Clock) -> None:
    directory.store(A, joined(PROMPT[:6]))
    directory.expect(PROMPT, A)
    assert directory.held(PROMPT).depths == {A: 10}
    clock.now += 3
    assert directory.held(PROMPT).depths == {A: 6}


def test_the_replica_has_the_last_word(directory: PrefixDirectory, clock: Clock) -> None:
    """What it says holds, also when an expectation would have lasted longer."""
    directory.expect(PROMPT, A)
    directory.store(A, joined(PROMPT[:8]))
    directory.remove(A, joined(PROMPT[5:8]))
    assert directory.held(PROMPT).depths == {A: 5}
    directory.expect(OTHER, A)
    directory.clear(A)
    assert directory.held(OTHER).depths == {}
    directory.expect(OTHER, B)
    directory.forget(B)
    assert directory.held(OTHER).depths == {}
    clock.now += 3
    assert directory.num_expected == 0


def test_a_replica_is_known_from_when_it_is_trusted_until_it_is_doubted(
    directory: PrefixDirectory,
) -> None:
    assert not directory.known
    directory.trust(A)
    assert directory.known == {A}
    directory.doubt(A)
    assert not directory.known
    directory.trust(B)
    directory.forget(B)
    assert not directory.known
