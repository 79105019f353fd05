"""A decoder-only language model, ready to run."""

from dataclasses import dataclass

import torch

from workers.kernels.library import Library
from workers.kernels.row_kernels import RowKernels
from workers.layers.attention import AttentionBackend, AttentionMetadata, AttentionPlan
from workers.layers.decoder_layer import DecoderLayer
from workers.layers.expert_load import ExpertLoad
from workers.layers.kv_cache import KVCache
from workers.layers.linear import Linear, NativeLinear
from workers.layers.rotary import RotaryEmbedding
from workers.layers.workspace import Workspace
from workers.models.config import ModelConfig
from workers.models.expert_rebalancer import ExpertRebalancer
from workers.models.rank_shape import RankShape
from workers.parallel.group import Group


@dataclass(frozen=True, slots=True)
class CausalLM:
    """One rank's share of embedding, decoder layers, final norm and head.

    Call it within torch.inference_mode.
    """

    config: ModelConfig
    """Of the whole model."""
    shape: RankShape
    """Of what this rank holds."""
    dtype: torch.dtype
    """Of weights, hidden states and cache."""
    device: torch.device
    embedding: torch.Tensor | None
    """[shape.num_vocab, hidden_size]: the rows of the ids shape.vocab; only in the first stage."""
    layers: list[DecoderLayer]
    """Those of shape.layers."""
    final_norm: torch.Tensor | None
    """[hidden_size]; only in the last stage."""
    head: Linear | None
    """hidden_size to shape.num_vocab, the logits of the ids shape.vocab; only in the last stage."""
    rotary: RotaryEmbedding
    backend: AttentionBackend
    rows: RowKernels
    library: Library | None
    """The CPU kernels that the layers are made of, if they are."""
    weight_bytes: int
    """Of all weights as they are kept, embedding and norms included."""
    dense: Group
    """The ranks that hold the other parts of the same layers."""
    expert_load: ExpertLoad | None
    """Rows that were routed to each expert; None for a model without experts."""
    rebalancer: ExpertRebalancer | None
    """Of experts, where ranks have spare room for them."""

    @property
    def is_native(self) -> bool:
        """Whether our own CPU kernels do all of a step."""
        return (
            (self.head is None or isinstance(self.head, NativeLinear))
            and all(layer.is_native for layer in self.layers)
            and self.backend.is_native
        )

    def prepare(self, metadata: AttentionMetadata) -> AttentionPlan:
        """Plan one step's attention, for `forward`."""
        if self.expert_load is not None:
            self.expert_load.num_real.fill_(metadata.query_starts[-1])
        return self.backend.prepare(metadata, self.shape.windows, self.dtype, self.device)

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
            workspace: Of T rows. In a stage that does not embed, its residual holds what the
                stage before returned.

        Returns:
            [T, hidden_size]: in the last stage hidden states after the final norm, which are
            workspace.normed; in others workspace.residual, for the next stage.
        """
        rotation = self.rotary.rotation(positions)
        self._embed(token_ids, workspace.residual)
        delta = None
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            delta = layer(delta, rotation, layer_cache, plan, workspace)
        if self.final_norm is None:
            self.rows.add(workspace.residual, workspace.delta)
            return workspace.residual
        self.rows.add_rms_norm(
            workspace.residual, delta, self.final_norm, self.config.rms_norm_eps, workspace.normed
        )
        return workspace.normed

    def _embed(self, token_ids: torch.Tensor, out: torch.Tensor) -> None:
        if self.embedding is None:
            return
        if self.dense.size == 1:
            self.rows.embed(token_ids, self.embedding, out)
            return
        self.rows.embed(token_ids, self.embedding, out, self.shape.vocab.start)
        self.dense.all_reduce(out)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Of hidden states [R, hidden_size]: float32 [R, shape.num_vocab], which is `out`.

        Only in the last stage. Each rank of a dense group has the logits of the ids shape.vocab.
        """
        assert self.head is not None, "only the last stage computes logits"
        return self.head(hidden, out)
