"""What one rank computes of each step."""

from typing import NamedTuple

import numpy as np
import torch

from workers.engine.row_share import RowShare
from workers.engine.step_plan import Ints, StepPlan
from workers.engine.vocabulary_logits import VocabularyLogits
from workers.layers.attention import AttentionPlan
from workers.layers.block_exchange import copy_blocks, zero_blocks
from workers.layers.block_share import BlockShare
from workers.layers.host_store import HostStore
from workers.layers.kv_cache import KVCache
from workers.layers.workspace import Workspace
from workers.models.causal_lm import CausalLM
from workers.models.recorder import Recorder
from workers.parallel.group import Ranks


class StepMemory(NamedTuple):
    """What steps of R rows work in, which stays where it is."""

    token_ids: torch.Tensor
    """int64 [R], of this rank's rows."""
    positions: torch.Tensor
    """int64 [R]"""
    workspace: Workspace


class PreparedStep(NamedTuple):
    """A plan as the model takes it."""

    memory: StepMemory
    attention: AttentionPlan


class RankRunner:
    """Owns a rank's share of the model, the KV cache's tensors and the memory that steps work in.

    All ranks run the same plans in the same order. Where this says so, call it within
    torch.inference_mode.
    """

    def __init__(
        self,
        model: CausalLM,
        cache: KVCache,
        ranks: Ranks,
        *,
        block_size: int,
        max_num_tokens: int,
        num_slots: int = 0,
    ) -> None:
        """For steps of up to max_num_tokens tokens, with so many blocks in host memory."""
        self.model = model
        self._cache = cache
        self._ranks = ranks
        self.host = HostStore(cache, num_slots, ranks.sequence) if num_slots else None
        """What of the cache is in host memory."""
        self._block_size = block_size
        self.row_share = RowShare(ranks.sequence, model, max_num_tokens)
        """Which rows of a step are this rank's."""
        self._block_share = BlockShare(ranks.sequence.rank, ranks.sequence.size)
        max_rows = self.row_share.max_rows
        self._rows = np.zeros((2, max_rows), dtype=np.int64)
        # Token ids and positions. On a CPU both are one memory.
        self._placed_rows = torch.from_numpy(self._rows).to(model.device)
        self._workspace = Workspace.allocate(model.shape, max_rows, model.dtype, model.device)
        self._memories: dict[int, StepMemory] = {}
        self._recorder = Recorder(model.library)
        self._logits = VocabularyLogits(model, ranks.dense)

    @torch.inference_mode()
    def follow(self, plan: StepPlan) -> None:
        """What every rank but the leader does with a plan. Raises RankLostError."""
        if not plan.num_tokens:
            self.rest()
            return
        hidden = self.forward(self.prepare(plan))
        if self._ranks.is_last_stage and self._ranks.place.sequence == 0:
            for rows in (plan.sampled_rows, *plan.scored_segments()):
                if len(rows):
                    self.logits(hidden, rows)

    def rest(self) -> None:
        """What all ranks do with an empty plan: look after experts. Raises RankLostError."""
        if self.model.rebalancer is not None:
            self.model.rebalancer.rest()

    def prepare(self, plan: StepPlan) -> PreparedStep:
        """Move, clear and copy blocks, and work out what layers share. Within inference_mode."""
        if self.host is not None:
            self.host.save(plan.save_pairs)
        zero_blocks(self._cache, plan.cleared.tolist(), self._block_share)
        copy_blocks(self._cache, plan.copy_pairs, self._ranks.sequence)
        if self.host is not None:
            self.host.load(plan.load_pairs)
        own = self.row_share.own(len(plan.token_ids))
        rows = self._rows[:, : own.stop - own.start]
        rows[0], rows[1] = plan.token_ids[own], plan.positions[own]
        if self._placed_rows.device.type != "cpu":
            self._placed_rows[:, : rows.shape[1]] = torch.from_numpy(rows)
        attention = self.model.prepare(plan.metadata(self._block_size, self.model.device))
        return PreparedStep(self._memory(rows.shape[1]), attention)

    def forward(self, step: PreparedStep) -> torch.Tensor:
        """Run this rank's layers on the step prepared last. Within inference_mode.

        Returns hidden states after the final norm, [T, hidden_size], in the last stage, those of
        all sequence ranks' rows; elsewhere what the next stage was sent. Raises RankLostError.
        """
        (token_ids, positions, workspace), attention = step
        if self._ranks.previous is not None:
            self._ranks.previous.receive(workspace.residual)
        self._recorder.run(
            len(token_ids),
            lambda: self.model.forward(token_ids, positions, self._cache, attention, workspace),
        )
        if self._ranks.following is None:
            hidden = self.row_share.gather(workspace.normed)
        else:
            hidden = workspace.residual
            self._ranks.following.send(hidden)
        self._ranks.check()
        return hidden

    def logits(self, hidden: torch.Tensor, rows: Ints) -> torch.Tensor:
        """float32 [R, vocab_size] of some rows of `hidden`, [T, hidden_size], on rank 0.

        The leader's dense group calls it for the same rows. Valid until the next call. Within
        inference_mode. Raises RankLostError.
        """
        logits = self._logits.of(hidden[torch.from_numpy(rows).to(hidden.device)])
        self._ranks.check()
        return logits

    def kernel_seconds(self) -> list[tuple[str, float]]:
        """See Engine. None of several ranks, which would have to do the step again together."""
        return self._recorder.seconds() if self._ranks.layout.world_size == 1 else []

    def _memory(self, num_rows: int) -> StepMemory:
        memory = self._memories.get(num_rows)
        if memory is None:
            memory = self._memories[num_rows] = StepMemory(
                self._placed_rows[0, :num_rows],
                self._placed_rows[1, :num_rows],
                self._workspace.first(num_rows),
            )
        return memory
