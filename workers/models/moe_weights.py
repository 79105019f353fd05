"""Builds a rank's share of the layers with experts from stored weights."""

from dataclasses import replace

from workers.kernels.library import load_library
from workers.layers.expert_exchange import expert_exchange
from workers.layers.expert_load import ExpertLoad
from workers.layers.expert_placement import ExpertPlacement, SlotTable
from workers.layers.experts import ExpertLayers, make_experts
from workers.layers.linear import make_linear
from workers.layers.moe import SharedExpert, SparseMlp
from workers.layers.router import Router
from workers.layers.sharding import Shard
from workers.models.architecture import ExpertNames, MixtureOfExperts
from workers.models.weights import Weights
from workers.parallel.group import Ranks


def sparse_mlp(
    weights: Weights,
    experts: MixtureOfExperts,
    hidden_size: int,
    index: int,
    ranks: Ranks,
    load: ExpertLoad,
    local_index: int,
) -> SparseMlp:
    """The feed-forward part of a sparse layer.

    Routers are not quantized: they are small, and a row sent elsewhere is another result.

    Args:
        weights: Cut for the dense group, which divides the shared expert.
        experts: Of the model.
        hidden_size: Of the model.
        index: The layer, counted from the model's first.
        ranks: This rank among those that the experts are divided among.
        load: Of this rank's layers.
        local_index: The layer, counted among these.
    """
    prefix = f"model.layers.{index}.{experts.names.block}"
    placement = ExpertPlacement.even(experts.num_experts, ranks.layout.expert)
    library = load_library() if weights.device.type == "cpu" else None
    gate = weights.tensor(f"{prefix}.gate.weight", (experts.num_experts, hidden_size))
    first_slot = ranks.place.expert * placement.slots_per_rank
    held = placement.experts[ranks.place.expert]
    for expert in set(range(experts.num_experts)) - set(held):
        weights.checkpoint.pass_over(f"{prefix}.experts.{expert}")
    parts = replace(weights, shard=Shard(ranks.place.tensor, ranks.layout.tensor), num_bytes=0)
    layers = [
        _swiglu(
            parts,
            f"{prefix}.experts.{expert}",
            experts.names,
            experts.intermediate_size,
            hidden_size,
        )
        for expert in held
    ]
    weights.num_bytes += parts.num_bytes
    return SparseMlp(
        router=Router(
            make_linear(gate, deterministic=weights.deterministic),
            SlotTable(placement, experts.num_experts, weights.device),
            library,
            renormalises=experts.renormalises,
        ),
        experts=make_experts(layers, first_slot, library),
        shared=_shared_expert(weights, prefix, experts, hidden_size),
        exchange=expert_exchange(
            ranks,
            experts.experts_per_token,
            placement.slots_per_rank,
            load,
            local_index,
            has_shared=experts.shared_intermediate_size > 0,
        ),
    )


def _shared_expert(
    weights: Weights, prefix: str, experts: MixtureOfExperts, hidden_size: int
) -> SharedExpert | None:
    inner = experts.shared_intermediate_size
    if not inner:
        return None
    gate = weights.tensor(f"{prefix}.shared_expert_gate.weight", (1, hidden_size))
    layers = _swiglu(weights, f"{prefix}.shared_expert", experts.names, inner, hidden_size)
    return SharedExpert(*layers, make_linear(gate, deterministic=weights.deterministic))


def _swiglu(
    weights: Weights, prefix: str, names: ExpertNames, inner: int, hidden_size: int
) -> ExpertLayers:
    outputs = weights.outputs(inner)
    return ExpertLayers(
        gated=weights.gated(
            prefix, {names.gate: outputs, names.up: outputs}, hidden_size, bias=False
        ),
        down=weights.row_parallel(f"{prefix}.{names.down}", inner, hidden_size, bias=False),
    )
