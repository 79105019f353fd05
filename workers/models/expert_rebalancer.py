"""Moves experts between ranks, so that these get equal shares of the rows."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import structlog
import torch

from workers.layers.decoder_layer import DecoderLayer
from workers.layers.expert_placement import EMPTY, ExpertPlacement, place_experts
from workers.layers.experts import ExpertLayers
from workers.layers.moe import SparseMlp
from workers.models.checkpoint import Checkpoint
from workers.models.moe_weights import ExpertReader, SparseLayers, expert_reader
from workers.parallel.group import Ranks

LEAST_ROWS = 32
"""Rows for each expert, on average, that make a layer's load worth looking at."""
_LEAST_GAIN = 0.1
"""Share of the busiest rank's rows that a move must take off it."""

log = structlog.get_logger(__name__)


class BalancedLayer(NamedTuple):
    """A sparse layer of this rank."""

    number: int
    """Counted from the model's first."""
    mlp: SparseMlp
    rows: torch.Tensor
    """int64 [num_experts]: see ExpertLoad."""


class _Move(NamedTuple):
    """Experts on their way to this rank's slots."""

    layer: BalancedLayer
    placement: ExpertPlacement
    changed: list[tuple[int, int]]
    """Slots of this rank, and the experts they are to hold."""
    read: Future[list[ExpertLayers]]


class ExpertRebalancer:
    """Deals out the experts of one layer after the other by the rows that they got lately.

    The ranks of a dense group count the same rows, so each decides for itself, and all the same. An
    expert that comes to a rank is read from the checkpoint on a thread, while steps go on; when all
    ranks have read theirs, all begin to use them at once.
    """

    def __init__(self, layers: Sequence[BalancedLayer], reader: ExpertReader, ranks: Ranks) -> None:
        """`reader` is used on another thread only."""
        self._layers = layers
        self._reader = reader
        self._ranks = ranks
        self._seen = [layer.rows.clone() for layer in layers]
        self._next = 0
        self._move: _Move | None = None
        self._thread = ThreadPoolExecutor(1, "experts")
        self.num_moves = 0
        """Layers whose experts were dealt out anew."""

    @property
    def has_work(self) -> bool:
        """Whether `rest` would do anything."""
        return self._move is not None or self._due() is not None

    def rest(self) -> None:
        """Look at one layer's load, or bring a move a step further.

        All ranks call it between the same steps. It takes no longer than to place a layer's
        experts. Raises RankLostError.
        """
        if self._move is not None:
            self._settle(self._move)
        elif (layer := self._due()) is not None:
            self._look_at(layer)

    def _due(self) -> int | None:
        """The next layer in turn that has got enough rows since it was looked at."""
        for offset in range(len(self._layers)):
            layer = (self._next + offset) % len(self._layers)
            rows = self._layers[layer].rows
            if int((rows - self._seen[layer]).sum()) >= LEAST_ROWS * len(rows):
                return layer
        return None

    def _look_at(self, number: int) -> None:
        layer = self._layers[number]
        load = (layer.rows - self._seen[number]).tolist()
        self._seen[number].copy_(layer.rows)
        self._next = number + 1
        now = layer.mlp.slots.placement
        wanted = place_experts(load, len(now.experts), now.slots_per_rank).arranged_after(now)
        before, after = (max(placement.rank_loads(load)) for placement in (now, wanted))
        if after > (1 - _LEAST_GAIN) * before:
            return
        held = now.experts[self._ranks.place.expert]
        slots = enumerate(wanted.experts[self._ranks.place.expert])
        changed = [(slot, new) for slot, new in slots if new not in (EMPTY, held[slot])]
        read = self._thread.submit(self._read, layer, changed)
        self._move = _Move(layer, wanted, changed, read)
        log.info("experts.move", layer=layer.number, busiest=before, then=after)

    def _read(self, layer: BalancedLayer, changed: list[tuple[int, int]]) -> list[ExpertLayers]:
        found = [self._reader.read(layer.number, expert) for _, expert in changed]
        for layers in found:
            layer.mlp.experts.check(layers)
        return found

    def _settle(self, move: _Move) -> None:
        """Use what was read if all ranks have read theirs; forget it if one could not."""
        is_done = move.read.done()
        error = move.read.exception() if is_done else None
        votes = torch.tensor([is_done, error is not None], dtype=torch.float32)
        votes = votes.to(move.layer.mlp.slots.places.device)
        self._ranks.dense.all_reduce(votes)
        self._ranks.check()
        num_done, num_failed = votes.tolist()
        if num_failed:
            log.warning("experts.not_moved", layer=move.layer.number, reason=str(error))
            self._move = None
        elif num_done == self._ranks.dense.size:
            for (slot, _), layers in zip(move.changed, move.read.result(), strict=True):
                move.layer.mlp.experts.put(slot, layers)
            move.layer.mlp.slots.set(move.placement)
            self.num_moves += 1
            self._move = None


def expert_rebalancer(
    model_dir: Path, sparse: SparseLayers, layers: Sequence[DecoderLayer], first_layer: int
) -> ExpertRebalancer:
    """Of a rank's layers, which are those of the model from `first_layer` on.

    The checkpoint stays open, so that experts are always read from the files that the others were
    read from.
    """
    checkpoint = ExitStack().enter_context(Checkpoint(model_dir))
    weights = replace(sparse.weights, checkpoint=checkpoint, cache=None)
    reader = expert_reader(weights, sparse.experts, sparse.hidden_size, sparse.ranks)
    balanced = [
        BalancedLayer(first_layer + number, layer.mlp, sparse.load.rows[number])
        for number, layer in enumerate(layers)
        if isinstance(layer.mlp, SparseMlp)
    ]
    return ExpertRebalancer(balanced, reader, sparse.ranks)
