"""How much of a model one rank holds."""

from dataclasses import dataclass

from workers.layers.expert_buffers import ExpertShape
from workers.layers.sharding import Shard
from workers.models.config import ModelConfig
from workers.models.stages import stage_layers
from workers.parallel.layout import ParallelLayout, Place


@dataclass(frozen=True, slots=True)
class RankShape:
    """One rank's share, in the numbers that its memory is laid out by."""

    layers: range
    """Decoder layers, counted from the model's first."""
    windows: frozenset[int | None]
    """The distinct sliding windows of these layers."""
    vocab: slice
    """Ids whose rows of the embedding and of the head it holds, where its stage has these."""
    hidden_size: int
    intermediate_size: int
    """Of layers without experts; 0 if there are none."""
    num_heads: int
    kv_heads: slice
    """Key/value heads, counted among the model's; several ranks may hold the same."""
    head_dim: int
    experts: ExpertShape | None
    """None for a model without experts."""

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads."""
        return len(range(self.kv_heads.start, self.kv_heads.stop))

    @property
    def num_vocab(self) -> int:
        """Rows of the embedding, and columns of the logits."""
        return len(range(self.vocab.start, self.vocab.stop))


def rank_shape(config: ModelConfig, layout: ParallelLayout, place: Place) -> RankShape:
    """The share of the rank at a place of a layout that fits the model (see check_layout)."""
    shard = dense_shard(layout, place)
    layers = stage_layers(config, layout.pipeline)[place.stage]
    return RankShape(
        layers=layers,
        windows=frozenset(config.windows[layers.start : layers.stop]),
        vocab=shard.ragged_part(config.vocab_size),
        hidden_size=config.hidden_size,
        intermediate_size=shard.count(config.intermediate_size) if config.has_dense_layers else 0,
        num_heads=shard.count(config.num_heads),
        kv_heads=shard.kv_heads(config.num_kv_heads),
        head_dim=config.head_dim,
        experts=_expert_shape(config, shard),
    )


def dense_shard(layout: ParallelLayout, place: Place) -> Shard:
    """A rank's part of all that its dense group divides."""
    return Shard(layout.dense_group(place).index(place.rank), layout.dense_size)


def _expert_shape(config: ModelConfig, shard: Shard) -> ExpertShape | None:
    experts = config.layer.experts
    if experts is None:
        return None
    return ExpertShape(
        experts.num_experts,
        experts.experts_per_token,
        shard.count(experts.shared_intermediate_size),
    )
