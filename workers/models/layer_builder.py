"""Builds a rank's share of decoder layers from stored weights."""

from dataclasses import dataclass

import torch

from workers.kernels.row_kernels import RowKernels
from workers.layers.attention import HeadNorm
from workers.layers.decoder_layer import DecoderLayer
from workers.layers.mlp import FeedForward, GatedMlp
from workers.layers.self_attention import SelfAttention
from workers.models.config import ModelConfig
from workers.models.moe_weights import SparseLayers
from workers.models.rank_shape import RankShape
from workers.models.weights import Outputs, Weights
from workers.parallel.group import Ranks


@dataclass(frozen=True, slots=True)
class LayerBuilder:
    """What all layers of one rank are built with."""

    weights: Weights
    config: ModelConfig
    shape: RankShape
    ranks: Ranks
    rows: RowKernels
    sparse: SparseLayers | None
    """None for a model without experts."""

    def layer(self, index: int) -> DecoderLayer:
        """A decoder layer, counted from the model's first."""
        prefix, norm_shape = f"model.layers.{index}", (self.config.hidden_size,)
        weights = self.weights
        return DecoderLayer(
            input_norm=weights.tensor(f"{prefix}.input_layernorm.weight", norm_shape),
            attention=self._attention(index),
            post_attention_norm=weights.tensor(
                f"{prefix}.post_attention_layernorm.weight", norm_shape
            ),
            mlp=self._feed_forward(index),
            eps=self.config.rms_norm_eps,
            rows=self.rows,
            dense=self.ranks.dense,
        )

    def _attention(self, index: int) -> SelfAttention:
        prefix = f"model.layers.{index}.self_attn"
        config, head_dim, kv_heads = self.config, self.config.head_dim, self.shape.kv_heads
        queries = config.num_heads * head_dim
        keys = Outputs(
            config.num_kv_heads * head_dim,
            slice(kv_heads.start * head_dim, kv_heads.stop * head_dim),
        )
        return SelfAttention(
            qkv=self.weights.column_parallel(
                prefix,
                {"q_proj": self.weights.outputs(queries), "k_proj": keys, "v_proj": keys},
                config.hidden_size,
                bias=config.layer.qkv_bias,
            ),
            output=self.weights.row_parallel(
                f"{prefix}.o_proj", queries, config.hidden_size, bias=config.layer.output_bias
            ),
            head_norm=self._head_norm(prefix) if config.layer.qk_norm else None,
            num_heads=self.shape.num_heads,
            num_kv_heads=self.shape.num_kv_heads,
            head_dim=head_dim,
            window=config.windows[index],
        )

    def _head_norm(self, prefix: str) -> HeadNorm:
        size = (self.config.head_dim,)
        query = self.weights.tensor(f"{prefix}.q_norm.weight", size)
        key = self.weights.tensor(f"{prefix}.k_norm.weight", size)
        queries, keys = self.shape.num_heads, self.shape.num_kv_heads
        rows = torch.cat((query.expand(queries, -1), key.expand(keys, -1)))
        return HeadNorm(rows, self.config.rms_norm_eps)

    def _feed_forward(self, index: int) -> FeedForward:
        experts = self.config.layer.experts
        if self.sparse is None or experts is None or not experts.sparse_layers[index]:
            return self._dense_mlp(index)
        return self.sparse.mlp(index, self.shape.layers.index(index))

    def _dense_mlp(self, index: int) -> GatedMlp:
        prefix, bias = f"model.layers.{index}.mlp", self.config.layer.mlp_bias
        hidden, inner = self.config.hidden_size, self.config.intermediate_size
        outputs = self.weights.outputs(inner)
        return GatedMlp(
            gated=self.weights.gated(
                prefix, {"gate_proj": outputs, "up_proj": outputs}, hidden, bias=bias
            ),
            down=self.weights.row_parallel(f"{prefix}.down_proj", inner, hidden, bias=bias),
        )
