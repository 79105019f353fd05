"""A decoder-only language model, ready to run."""

from dataclasses import dataclass

import torch

from workers.kernels.library import Library
from workers.kernels.row_kernels import RowKernels
from workers.layers.attention import AttentionBackend, AttentionMetadata, AttentionPlan
from workers.layers.decoder_layer import DecoderLayer
from workers.layers.kv_cache import KVCache
from workers.layers.linear import Linear, NativeLinear
from workers.layers.native_attention import NativeAttention
from workers.layers.rotary import RotaryEmbedding
from workers.layers.workspace import Workspace
from workers.models.config import ModelConfig


@dataclass(frozen=True, slots=True)
class CausalLM:
    """Embedding, decoder layers, final norm and head. Call it within torch.inference_mode."""

    config: ModelConfig
    dtype: torch.dtype
    """Of weights, hidden states and cache."""
    device: torch.device
    embedding: torch.Tensor
    """[vocab_size, hidden_size]"""
    layers: list[DecoderLayer]
    final_norm: torch.Tensor
    """[hidden_size]"""
    head: Linear
    """hidden_size to vocab_size."""
    rotary: RotaryEmbedding
    backend: AttentionBackend
    rows: RowKernels
    library: Library | None
    """The CPU kernels that the layers are made of, if they are."""
    weight_bytes: int
    """Of all weights as they are kept, embedding and norms included."""

    @property
    def is_native(self) -> bool:
        """Whether our own CPU kernels do all of a step."""
        linears = [self.head]
        for layer in self.layers:
            linears += (layer.attention.qkv, layer.attention.output)
            linears += (layer.mlp.gated, layer.mlp.down)
        is_native = all(isinstance(linear, NativeLinear) for linear in linears)
        return is_native and isinstance(self.backend, NativeAttention)

    def prepare(self, metadata: AttentionMetadata) -> AttentionPlan:
        """Plan one step's attention, for `forward`."""
        return self.backend.prepare(metadata, set(self.config.windows), self.dtype, self.device)

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        cache: KVCache,
        plan: AttentionPlan,
        workspace: Workspace,
    ) -> torch.Tensor:
        """One step over a flat batch of T rows, padding included.

        Args:
            token_ids: int64 [T].
            positions: int64 [T], each row's place in its sequence.
            cache: Holds what came before; takes this step's keys and values.
            plan: Of the same batch.
            workspace: Of T rows.

        Returns:
            Hidden states after the final norm, [T, hidden_size]: workspace.normed.
        """
        rotation = self.rotary.rotation(positions)
        self.rows.embed(token_ids, self.embedding, workspace.residual)
        delta = None
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            delta = layer(delta, rotation, layer_cache, plan, workspace)
        self.rows.add_rms_norm(
            workspace.residual, delta, self.final_norm, self.config.rms_norm_eps, workspace.normed
        )
        return workspace.normed

    def logits(self, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Of hidden states [R, hidden_size]: float32 [R, vocab_size], which is `out`."""
        return self.head(hidden, out)
