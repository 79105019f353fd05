"""The smallest loop that drives a model: one sequence, no scheduler."""

import torch

from workers.layers.attention import AttentionMetadata
from workers.layers.kv_cache import KVCache
from workers.layers.workspace import Workspace
from workers.models.causal_lm import CausalLM


class Driver:
    """Feeds one sequence to a model through blocks that lie in no order."""

    def __init__(self, model: CausalLM, max_tokens: int, block_size: int) -> None:
        num_blocks = -(-max_tokens // block_size)
        self._model = model
        self._block_size = block_size
        self._cache = KVCache.allocate(
            model.shape, num_blocks + 1, block_size, model.dtype, model.device
        )
        generator = torch.Generator().manual_seed(3)
        self._table = (torch.randperm(num_blocks, generator=generator) + 1).tolist()
        self._length = 0

    @torch.inference_mode()
    def feed(self, token_ids: list[int]) -> torch.Tensor:
        """Logits after each of the tokens, float32 [len(token_ids), vocab_size]."""
        positions = torch.arange(self._length, self._length + len(token_ids))
        self._length += len(token_ids)
        blocks = torch.tensor(self._table)[positions // self._block_size]
        metadata = AttentionMetadata(
            query_starts=[0, len(token_ids)],
            context_lens=[self._length],
            block_tables=[self._table],
            slot_mapping=blocks * self._block_size + positions % self._block_size,
            block_size=self._block_size,
        )
        plan = self._model.prepare(metadata)
        workspace = Workspace.allocate(
            self._model.shape, len(token_ids), self._model.dtype, self._model.device
        )
        hidden = self._model.forward(
            torch.tensor(token_ids), positions, self._cache, plan, workspace
        )
        out = torch.empty(len(token_ids), self._model.config.vocab_size)
        return self._model.logits(hidden, out)

    def greedy(self, prompt: list[int], num_tokens: int) -> list[int]:
        """Continue a prompt with the likeliest tokens."""
        output = [int(self.feed(prompt)[-1].argmax())]
        while len(output) < num_tokens:
            output.append(int(self.feed(output[-1:])[-1].argmax()))
        return output
