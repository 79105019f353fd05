"""Where ranks go, and what is said when there is no room for them."""

import asyncio
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from cluster.settings import ParallelSettings, Settings
from workers.parallel.layout import ParallelLayout
from workers.replica.placement import (
    Node,
    actor_options,
    bundle_of,
    bundles_of,
    live_nodes,
    waiting_replicas,
    with_device,
)
from workers.replica.rollout import deploy, rollout_status, undeploy, watch_placement


def _settings(**changes: Any) -> Settings:
    return Settings.model_validate({"model": "/model", **changes})


def _node(cpus: float, gpus: float = 0, **labels: str) -> Node:
    resources = {"CPU": cpus, "GPU": gpus}
    return Node("10.0.0.1", resources, resources, labels)


sizes = st.integers(1, 3)


@given(st.builds(ParallelSettings, tensor=sizes, pipeline=sizes, expert=sizes, sequence=sizes))
def test_a_stage_is_one_bundle_where_a_node_is_large_enough(parallel: ParallelSettings) -> None:
    """The leader's first; and whatever the bundles, ranks that share one are of one stage."""
    layout = ParallelLayout(**parallel.model_dump())
    settings = _settings(engine={"parallel": parallel.model_dump()}, replica={"num_cpus": 2})
    by_stage = bundles_of(settings, [_node(1), _node(2 * layout.stage_size)])
    assert by_stage == [{"CPU": 2.0 * layout.stage_size}] * layout.pipeline
    by_rank = bundles_of(settings, [_node(2 * layout.stage_size - 1)])
    assert by_rank == [{"CPU": 2.0}] * layout.world_size
    for bundles in (by_stage, by_rank):
        places = [bundle_of(rank, layout, len(bundles)) for rank in range(layout.world_size)]
        assert sorted(set(places)) == list(range(len(bundles)))
        assert places[0] == 0
        stages = {(place, layout.place(rank).stage) for rank, place in enumerate(places)}
        assert len(stages) == len(bundles)


def test_only_nodes_with_the_labels_count() -> None:
    settings = _settings(
        engine={"parallel": {"tensor": 2}},
        replica={"node_labels": {"disk": "fast", "zone": "!b"}},
    )
    ours = _node(1, disk="fast", zone="a")
    assert len(bundles_of(settings, [ours, _node(8, disk="slow"), _node(8)])) == 2
    assert len(bundles_of(settings, [ours, _node(8, disk="fast", zone="b")])) == 2
    assert len(bundles_of(settings, [ours, _node(8, disk="fast", zone="c")])) == 1


def test_ranks_reserve_gpus_where_there_are_any() -> None:
    """One each; on a device that was asked for, whatever the nodes have."""
    parallel = {"parallel": {"tensor": 2}}
    with_gpus, without = [_node(8, 2), _node(8)], [_node(8)]

    chosen = with_device(_settings(engine=parallel), with_gpus)
    assert chosen.engine.device == "cuda"
    assert bundles_of(chosen, with_gpus) == [{"CPU": 2.0, "GPU": 2.0}]
    assert bundles_of(chosen, [_node(8, 1)]) == [{"CPU": 1.0, "GPU": 1.0}] * 2
    assert actor_options(chosen) == {"num_cpus": 1.0, "num_gpus": 1.0}

    assert with_device(_settings(engine=parallel), without).engine.device == "cpu"
    labelled = _settings(engine=parallel, replica={"node_labels": {"disk": "fast"}})
    assert with_device(labelled, with_gpus).engine.device == "cpu"

    on_cpus = with_device(_settings(engine=parallel | {"device": "cpu"}), with_gpus)
    assert bundles_of(on_cpus, with_gpus) == [{"CPU": 2.0}]
    assert actor_options(on_cpus) == {"num_cpus": 1.0, "num_gpus": 0.0}


async def test_a_replica_without_room_is_told_of_and_gives_its_place_back(ray_cpus: int) -> None:
    settings = _settings(
        redis={"url": "redis://127.0.0.1:1"},
        engine={"parallel": {"tensor": 3}},
        replica={"num_cpus": 2, "placement_timeout_s": 0.5},
    )
    await asyncio.to_thread(deploy, settings)
    watch = watch_placement(settings)
    while not (failure := await asyncio.to_thread(watch.failure)):
        pass
    [node] = live_nodes()
    assert failure == (
        f"no room for 1: each needs bundles of 2 CPUs, 2 CPUs, 2 CPUs, and there are "
        f"{node.address} ({node.free['CPU']:g} of {ray_cpus} CPUs free)"
    )
    status = await asyncio.to_thread(rollout_status)
    assert not status.running
    assert status.num_starting == 0
    await asyncio.to_thread(undeploy)
    assert waiting_replicas("trunkline") == {}
