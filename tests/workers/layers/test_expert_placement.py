"""Placing experts: every one somewhere, and more slots never make the busiest rank busier."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.layers.expert_placement import EMPTY, ExpertPlacement, SlotTable, place_experts

LOADS = st.lists(st.integers(0, 1000), min_size=1, max_size=40)
RANKS = st.integers(1, 8)
SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)


def busiest(placement: ExpertPlacement, load: list[int]) -> float:
    return max(placement.rank_loads(load))


@SETTINGS
@given(load=LOADS, num_ranks=RANKS, spare=st.integers(0, 5))
def test_every_expert_has_a_slot_and_no_rank_too_many(
    load: list[int], num_ranks: int, spare: int
) -> None:
    slots = -(-len(load) // num_ranks) + spare
    placement = place_experts(load, num_ranks, slots)
    assert len(placement.experts) == num_ranks
    assert {expert for held in placement.experts for expert in held} == set(range(len(load)))
    for held in placement.experts:
        assert len(held) <= slots
        assert len(set(held)) == len(held)
    assert sum(placement.rank_loads(load)) == pytest.approx(sum(load))


@SETTINGS
@given(load=LOADS, num_ranks=RANKS, spare=st.integers(0, 5))
def test_replicas_never_make_the_busiest_rank_busier(
    load: list[int], num_ranks: int, spare: int
) -> None:
    """Than fewer of them, than none, and than experts in order."""
    slots = -(-len(load) // num_ranks)
    found = busiest(place_experts(load, num_ranks, slots + spare), load)
    assert found <= busiest(place_experts(load, num_ranks, slots), load)
    assert found <= busiest(ExpertPlacement.even(len(load), num_ranks), load)
    if spare:
        assert found <= busiest(place_experts(load, num_ranks, slots + spare - 1), load)


@SETTINGS
@given(load=LOADS, num_ranks=RANKS)
def test_without_limits_on_slots_loads_are_equal(load: list[int], num_ranks: int) -> None:
    """Every expert may then be everywhere."""
    placement = place_experts(load, num_ranks, len(load))
    assert busiest(placement, load) == pytest.approx(sum(load) / num_ranks)


def test_one_hot_expert_is_replicated() -> None:
    placement = place_experts([100, 1, 1, 1], 2, 3)
    assert all(0 in held for held in placement.experts)
    assert busiest(placement, [100, 1, 1, 1]) == 51.5


def test_even_placement_is_that_of_consecutive_experts() -> None:
    assert ExpertPlacement.even(8, 2).experts == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert ExpertPlacement.even(6, 3, 1).experts == ((0, 1, 2), (2, 3, 4), (4, 5, 0))
    assert ExpertPlacement.even(4, 2, 9).experts == ((0, 1, 2, 3), (2, 3, 0, 1))


@SETTINGS
@given(load=LOADS, later=LOADS, num_ranks=RANKS, spare=st.integers(0, 5))
def test_experts_that_stay_keep_their_slots(
    load: list[int], later: list[int], num_ranks: int, spare: int
) -> None:
    later = (later * len(load))[: len(load)]
    slots = -(-len(load) // num_ranks) + spare
    before, wanted = (place_experts(each, num_ranks, slots) for each in (load, later))
    found = wanted.arranged_after(before)
    assert found.rank_loads(later) == pytest.approx(wanted.rank_loads(later))
    for held, target, arranged in zip(before.experts, wanted.experts, found.experts, strict=True):
        assert set(arranged) - {EMPTY} == set(target)
        for slot, expert in enumerate(held):
            assert expert not in target or arranged[slot] == expert


def test_a_table_names_each_experts_slots_and_can_be_set_again() -> None:
    table = SlotTable(ExpertPlacement(3, ((0, 1), (1, 2, 3))), 4, torch.device("cpu"))
    assert table.copies.tolist() == [1, 2, 1, 1]
    assert table.places.tolist() == [[0, -1], [1, 3], [4, -1], [5, -1]]
    address = table.places.data_ptr()
    table.set(ExpertPlacement.even(4, 2))
    assert table.places[:, 0].tolist() == [0, 1, 2, 3]
    assert table.places.data_ptr() == address


def test_what_cannot_be_placed_is_refused() -> None:
    with pytest.raises(ValueError, match="slots_per_rank: got 1, expected at least 2"):
        place_experts([1, 1, 1, 1], 2, 1)
    with pytest.raises(ValueError, match=r"got none of \[1\]"):
        ExpertPlacement(1, ((0,), (2,))).places(3)
    with pytest.raises(ValueError, match="experts of rank 1: got"):
        ExpertPlacement(2, ((0, 1), (2, 2)))
