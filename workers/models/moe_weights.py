"""Builds a rank's share of the layers with experts from stored weights."""

from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class SparseLayers:
    """What all sparse layers of one rank are built with."""

    weights: Weights
    """Cut for the dense group, which divides the shared expert."""
    experts: MixtureOfExperts
    hidden_size: int
    ranks: Ranks
    load: ExpertLoad
    """Of this rank's layers."""
    num_spare: int = 0
    """Experts that each rank holds beside its own."""

    def mlp(self, index: int, local_index: int) -> SparseMlp:
        """The feed-forward part of a layer, counted from the model's first and among this rank's.

        Routers are not quantized: they are small, and a row sent elsewhere is another result.
        """
        weights, experts, ranks = self.weights, self.experts, self.ranks
        prefix = f"model.layers.{index}.{experts.names.block}"
        placement = ExpertPlacement.even(experts.num_experts, ranks.layout.expert, self.num_spare)
        library = load_library() if weights.device.type == "cpu" else None
        gate = weights.tensor(f"{prefix}.gate.weight", (experts.num_experts, self.hidden_size))
        slots = SlotTable(placement, experts.num_experts, weights.device)
        return SparseMlp(
            router=Router(
                make_linear(gate, deterministic=weights.deterministic),
                slots,
                library,
                renormalises=experts.renormalises,
            ),
            slots=slots,
            experts=make_experts(
                self._held(index, placement.experts[ranks.place.expert]),
                ranks.place.expert * placement.slots_per_rank,
                library,
            ),
            shared=self._shared(prefix),
            exchange=expert_exchange(
                ranks,
                experts.experts_per_token,
                placement.slots_per_rank,
                self.load,
                local_index,
                has_shared=experts.shared_intermediate_size > 0,
            ),
        )

    def _held(self, index: int, held: tuple[int, ...]) -> list[ExpertLayers]:
        """The experts of this rank's slots; what others hold is passed over."""
        reader = expert_reader(self.weights, self.experts, self.hidden_size, self.ranks)
        for expert in set(range(self.experts.num_experts)) - set(held):
            self.weights.checkpoint.pass_over(reader.module(index, expert))
        found = [reader.read(index, expert) for expert in held]
        self.weights.num_bytes += reader.weights.num_bytes
        return found

    def _shared(self, prefix: str) -> SharedExpert | None:
        inner, hidden = self.experts.shared_intermediate_size, self.hidden_size
        if not inner:
            return None
        gate = self.weights.tensor(f"{prefix}.shared_expert_gate.weight", (1, hidden))
        return SharedExpert(
            *_swiglu(self.weights, f"{prefix}.shared_expert", self.experts.names, inner, hidden),
            make_linear(gate, deterministic=self.weights.deterministic),
        )


@dataclass(frozen=True, slots=True)
class ExpertReader:
    """Reads one expert after the other."""

    weights: Weights
    """Cut over the tensor ranks."""
    experts: MixtureOfExperts
    hidden_size: int

    def module(self, index: int, expert: int) -> str:
        """What the checkpoint calls an expert of a layer, counted from the model's first."""
        return f"model.layers.{index}.{self.experts.names.block}.experts.{expert}"

    def read(self, index: int, expert: int) -> ExpertLayers:
        """This rank's part of an expert. Raises CheckpointError."""
        return _swiglu(
            self.weights,
            self.module(index, expert),
            self.experts.names,
            self.experts.intermediate_size,
            self.hidden_size,
        )


def expert_reader(
    weights: Weights, experts: MixtureOfExperts, hidden_size: int, ranks: Ranks
) -> ExpertReader:
    """Of the checkpoint that `weights` reads, with a count of bytes of its own."""
    shard = Shard(ranks.place.tensor, ranks.layout.tensor)
    return ExpertReader(replace(weights, shard=shard, num_bytes=0), experts, hidden_size)


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
