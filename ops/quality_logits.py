"""A model's opinion of every next token of a text, through the paged cache as when it serves."""

from collections.abc import Iterator, Sequence

import torch

from cluster.settings import EngineSettings
from workers.engine.cache_size import cache_dtype
from workers.layers.attention import AttentionMetadata
from workers.layers.kv_cache import KVCache
from workers.layers.workspace import Workspace
from workers.models.causal_lm import CausalLM

CHUNK_TOKENS = 64
"""Tokens of one step; what earlier steps left in the cache is read back from it."""


class LogitReader:
    """Reads windows of text, each from an empty cache."""

    def __init__(self, model: CausalLM, settings: EngineSettings, window_tokens: int) -> None:
        num_blocks = -(-window_tokens // settings.block_size)
        self._model = model
        self._block_size = settings.block_size
        self._cache = KVCache.allocate(
            model.shape,
            num_blocks + 1,
            settings.block_size,
            cache_dtype(model, settings),
            model.device,
        )
        self._workspace = Workspace.allocate(model.shape, CHUNK_TOKENS, model.dtype, model.device)
        self._blocks = list(range(1, num_blocks + 1))

    def read(self, token_ids: Sequence[int]) -> Iterator[torch.Tensor]:
        """Logits after each of the tokens, float32 [up to CHUNK_TOKENS, vocab_size] at a time."""
        for start in range(0, len(token_ids), CHUNK_TOKENS):
            yield self._step(token_ids[start : start + CHUNK_TOKENS], start)

    @torch.inference_mode()
    def _step(self, token_ids: Sequence[int], start: int) -> torch.Tensor:
        model, device, length = self._model, self._model.device, len(token_ids)
        positions = torch.arange(start, start + length, device=device)
        blocks = torch.tensor(self._blocks, device=device)[positions // self._block_size]
        plan = model.prepare(
            AttentionMetadata(
                query_starts=[0, length],
                context_lens=[start + length],
                block_tables=[self._blocks[: -(-(start + length) // self._block_size)]],
                slot_mapping=blocks * self._block_size + positions % self._block_size,
                block_size=self._block_size,
            )
        )
        hidden = model.forward(
            torch.tensor(token_ids, device=device),
            positions,
            self._cache,
            plan,
            self._workspace.first(length),
        )
        return model.logits(hidden, torch.empty(length, model.config.vocab_size, device=device))
