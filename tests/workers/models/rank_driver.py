"""Two sequences fed to all ranks of a layout at once, as threads of one process."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.golden.models import VOCAB_SIZE
from tests.workers.parallel.thread_group import run_ranks
from workers.layers.attention import AttentionMetadata
from workers.layers.kv_cache import KVCache
from workers.layers.workspace import Workspace
from workers.models.causal_lm import CausalLM
from workers.models.loader import load_model
from workers.models.recorder import Recorder
from workers.parallel.group import Ranks
from workers.parallel.layout import ParallelLayout

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,  # a prime: ranks' parts differ
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Of the models that are divided."""
BLOCK_SIZE = 4
TABLES = [[7, 2, 9, 4, 11, 1, 8, 12, 13], [3, 10, 5, 6]]
CHUNKS = ((21, 6), (1, 1), (5, 2), (1, 1), (1, 1))
"""Rows of each sequence in each step."""
_PADDING = 2
_MAX_ROWS = 32


class Fed(NamedTuple):
    """What the last stage computed for all rows of all steps."""

    hidden: torch.Tensor
    """[R, hidden_size]"""
    logits: torch.Tensor
    """float32 [R, vocab_size]; of one rank, its columns."""


class _Step(NamedTuple):
    token_ids: torch.Tensor
    positions: torch.Tensor
    attention: AttentionMetadata


def assert_same(found: Fed, expected: Fed) -> None:
    """Up to the rounding of sums in another order."""
    torch.testing.assert_close(found.hidden, expected.hidden, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)


def feed(
    folder: Path,
    layout: ParallelLayout | None = None,
    attention: str = "auto",
    **arguments: Any,
) -> Fed:
    """Load a model for each rank of a layout, feed the steps, and put the ranks' logits together.

    `arguments` go to load_model.
    """
    layout = layout or ParallelLayout()

    def body(ranks: Ranks) -> Fed | None:
        model = load_model(folder, torch.float32, "cpu", attention, ranks=ranks, **arguments)
        return RankDriver(model, ranks).feed()

    found = run_ranks(layout, body)
    last = [found[rank] for rank in layout.dense_group(layout.place(0))]
    assert sum(fed is not None for fed in found) == len(last), "only the last stage has logits"
    heads = [fed for fed in last if fed is not None]
    assert all(torch.equal(fed.hidden, heads[0].hidden) for fed in heads)
    return Fed(heads[0].hidden, torch.cat([fed.logits for fed in heads], dim=1))


class RankDriver:
    """Runs all steps on one rank."""

    def __init__(self, model: CausalLM, ranks: Ranks, recorder: Recorder | None = None) -> None:
        self.num_runs = 0
        """Steps that Python ran, and not a recorded program."""
        self._model = model
        self._ranks = ranks
        self._recorder = recorder or Recorder(None)
        num_blocks = 1 + max(block for table in TABLES for block in table)
        self._cache = KVCache.allocate(model.shape, num_blocks, BLOCK_SIZE, model.dtype, "cpu")
        self._workspace = Workspace.allocate(model.shape, _MAX_ROWS, model.dtype, model.device)
        self._token_ids = torch.zeros(_MAX_ROWS, dtype=torch.int64)
        self._positions = torch.zeros(_MAX_ROWS, dtype=torch.int64)

    @torch.inference_mode()
    def feed(self) -> Fed | None:
        """Of the last stage, this rank's columns of the logits; None of others."""
        hidden = [self._hidden(step) for step in _steps(self._model.config.vocab_size)]
        if not self._ranks.is_last_stage:
            return None
        rows = torch.cat(hidden)
        return Fed(
            rows, self._model.logits(rows, torch.empty(len(rows), self._model.shape.num_vocab))
        )

    def _hidden(self, step: _Step) -> torch.Tensor:
        count, ranks = len(step.token_ids), self._ranks
        token_ids, positions = self._token_ids[:count], self._positions[:count]
        token_ids.copy_(step.token_ids)
        positions.copy_(step.positions)
        plan, workspace = self._model.prepare(step.attention), self._workspace.first(count)
        if ranks.previous is not None:
            ranks.previous.receive(workspace.residual)

        def forward() -> None:
            self.num_runs += 1
            self._model.forward(token_ids, positions, self._cache, plan, workspace)

        self._recorder.run(count, forward)
        ranks.check()
        if ranks.following is not None:
            ranks.following.send(workspace.residual)
        return workspace.normed[: step.attention.query_starts[-1]].clone()


def _steps(vocab_size: int) -> Iterator[_Step]:
    """Batches of both sequences and rows of padding."""
    generator = torch.Generator().manual_seed(5)
    padding = torch.zeros(_PADDING, dtype=torch.int64)
    lengths = [0] * len(TABLES)
    for chunk in CHUNKS:
        positions, slots, starts = [], [], [0]
        for sequence, count in enumerate(chunk):
            at = torch.arange(lengths[sequence], lengths[sequence] + count)
            blocks = torch.tensor(TABLES[sequence])[at // BLOCK_SIZE]
            positions.append(at)
            slots.append(blocks * BLOCK_SIZE + at % BLOCK_SIZE)
            starts.append(starts[-1] + count)
            lengths[sequence] += count
        attention = AttentionMetadata(starts, list(lengths), TABLES, torch.cat(slots), BLOCK_SIZE)
        token_ids = torch.randint(vocab_size, (starts[-1],), generator=generator)
        yield _Step(torch.cat((token_ids, padding)), torch.cat((*positions, padding)), attention)
