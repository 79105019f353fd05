"""Ranks of a layout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.parallel.layout import ParallelLayout

sizes = st.integers(1, 4)
layouts = st.builds(ParallelLayout, sizes, sizes, sizes, sizes)


@given(layouts)
def test_places_and_ranks_are_one_to_one(layout: ParallelLayout) -> None:
    places = [layout.place(rank) for rank in range(layout.world_size)]
    assert [layout.rank(p.stage, p.sequence, p.expert, p.tensor) for p in places] == list(
        range(layout.world_size)
    )


@given(layouts)
def test_the_leader_is_of_the_last_stage(layout: ParallelLayout) -> None:
    assert layout.place(0).stage == layout.pipeline - 1
    assert layout.neighbour(layout.place(0), 1) is None


@given(layouts)
def test_all_members_agree_on_their_groups(layout: ParallelLayout) -> None:
    for rank in range(layout.world_size):
        for group_of in (layout.dense_group, layout.expert_group, layout.sequence_group):
            group = group_of(layout.place(rank))
            assert rank in group
            assert all(group_of(layout.place(member)) == group for member in group)


@given(layouts)
def test_neighbours_are_each_others(layout: ParallelLayout) -> None:
    for rank in range(layout.world_size):
        following = layout.neighbour(layout.place(rank), 1)
        if following is not None:
            assert layout.neighbour(layout.place(following), -1) == rank


def test_a_rank_beyond_the_last_is_refused() -> None:
    with pytest.raises(ValueError, match="rank 2 is not within world size 2"):
        ParallelLayout(tensor=2).place(2)
