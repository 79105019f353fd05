"""Machines that are about to leave the cluster."""

import ray
from ray._private.state import state
from ray.util.placement_group import PlacementGroup, placement_group_table


def machine_leaves(group: PlacementGroup) -> bool:
    """Whether a machine with ranks of this replica drains, other than the leader's.

    Of the leader's own, Serve takes care: it looks at no others. To be called in the leader's
    process.
    """
    if group.bundle_count == 1:
        return False
    holding = set(placement_group_table(group)["bundles_to_node_id"].values())
    holding.discard(ray.get_runtime_context().get_node_id())
    return not holding.isdisjoint(state.get_draining_nodes())
