"""The leader's part of a step: has all ranks compute it, and draws tokens from the logits."""

from collections.abc import Callable
from typing import NamedTuple

import torch

from workers.engine.batch import Batch, Chunk
from workers.engine.logprobs import token_logprobs
from workers.engine.mean_pool import Doubles
from workers.engine.rank_runner import RankRunner
from workers.engine.request import TokenLogprob
from workers.engine.sampler import Draw, Sampler
from workers.engine.sequence import Sequence
from workers.engine.step_inputs import make_plan
from workers.engine.step_plan import StepPlan
from workers.engine.stopwatch import Stopwatch
from workers.kernels.cpu_sampling import CpuSampling


class Sample(NamedTuple):
    """A token drawn for one sample of a request."""

    sequence: Sequence
    number: int
    """Which of the request's samples; not the sequence's own when the request is about to fork."""
    draw: Draw
    logprob: TokenLogprob | None


ChunkLogprobs = tuple[Chunk, list[TokenLogprob]]
ChunkSum = tuple[Chunk, Doubles]


class StepResult(NamedTuple):
    """What a step brought forth, for chunks that are not stale."""

    samples: list[Sample]
    prompt_logprobs: list[ChunkLogprobs]
    row_sums: list[ChunkSum]
    """Of prompts to embed: the sum of the chunk's hidden states, float64 [hidden_size]."""
    failed: list[Sequence]
    """Those whose values are not finite; they have nothing else."""


class Submitted(NamedTuple):
    """A batch that all ranks have been told of."""

    batch: Batch
    plan: StepPlan


class ModelRunner:
    """Takes batches, one or several ahead, and returns what came of them in the same order."""

    def __init__(
        self,
        rank: RankRunner,
        send: Callable[[StepPlan], None],
        *,
        block_size: int,
        watch: Stopwatch,
    ) -> None:
        """`send` hands a plan to all other ranks."""
        self._rank = rank
        self._send = send
        self._block_size = block_size
        model = rank.model
        self._rows = model.rows
        self._kernels = None if model.library is None else CpuSampling(model.library)
        self._sampler = Sampler(model.config.eos_token_ids, self._kernels)
        self._watch = watch

    def submit(self, batch: Batch) -> Submitted:
        """Tell all ranks of a batch that is not empty. Raises RankLostError."""
        plan = make_plan(batch, self._block_size, self._rank.row_share.num_parts)
        self._send(plan)
        self._watch.lap("build")
        return Submitted(batch, plan)

    @torch.inference_mode()
    def collect(self, submitted: Submitted) -> StepResult:
        """Compute what was submitted first of all that is not collected, and sample where chunks
        reach their sequence's end. Raises RankLostError.

        Logits are computed as the plan says, also where nobody wants them any more: other ranks
        know nothing of that.
        """
        batch, plan = submitted
        step = self._rank.prepare(plan)
        self._watch.lap("build")
        hidden = self._rank.forward(step)
        failed = self._not_finite(hidden, submitted)
        dropped = [c for c in batch.chunks if c.is_stale or c.sequence in failed]
        samples: list[Sample] = []
        if len(plan.sampled_rows):
            logits = self._rank.logits(hidden, plan.sampled_rows)
            self._watch.lap("forward")
            samples = self._sample(logits, [c for c in batch.chunks if c.samples], dropped)
            self._watch.lap("sample")
        prompt_logprobs = self._prompt_logprobs(hidden, submitted, dropped)
        row_sums = _row_sums(hidden, submitted, dropped)
        self._watch.lap("forward")
        return StepResult(samples, prompt_logprobs, row_sums, failed)

    def rest(self) -> bool:
        """Use a moment without steps; whether there is more to do. Raises RankLostError."""
        rebalancer = self._rank.model.rebalancer
        if rebalancer is None or not rebalancer.has_work:
            return False
        self._send(StepPlan.empty())
        self._rank.rest()
        return rebalancer.has_work

    def kernel_seconds(self) -> list[tuple[str, float]]:
        """See Engine."""
        return self._rank.kernel_seconds()

    def _not_finite(self, hidden: torch.Tensor, submitted: Submitted) -> list[Sequence]:
        """The sequences with a row of hidden states, [T, H], that has NaN or infinity in it.

        Found here and not by their logits alone, so that a prompt read in several steps is caught
        before its blocks can be shared.
        """
        batch, plan = submitted
        is_finite = hidden.new_empty(plan.num_tokens, dtype=torch.bool)
        self._rows.are_finite(hidden[: plan.num_tokens], is_finite)
        if is_finite.all():
            return []
        starts = plan.query_starts.tolist()
        return [
            chunk.sequence
            for chunk, start in zip(batch.chunks, starts, strict=False)
            if not chunk.is_stale and not is_finite[start : start + chunk.length].all()
        ]

    def _sample(
        self, logits: torch.Tensor, chunks: list[Chunk], dropped: list[Chunk]
    ) -> list[Sample]:
        """Draw the tokens after chunks, one row of logits each, but for those that are dropped."""
        if dropped:
            kept = [row for row, chunk in enumerate(chunks) if chunk not in dropped]
            logits, chunks = logits[kept], [chunks[row] for row in kept]
        sequences = [chunk.sequence for chunk in chunks]
        targets = [(s, index) for s in sequences for index in _sample_indices(s)]
        rows = [row for row, s in enumerate(sequences) for _ in _sample_indices(s)]
        if len(rows) > len(sequences):
            logits = logits[rows]
        wants = [s.group.request.params.top_logprobs for s, _ in targets]
        changes = any(s.group.request.params.changes_logits for s in sequences)
        reports = any(want is not None for want in wants)
        original = logits.clone() if changes and reports else logits
        draws = self._sampler.sample(logits, targets)
        logprobs = self._logprobs_of(original, [draw.token_id for draw in draws], wants)
        return [
            Sample(sequence, index, draw, logprob)
            for (sequence, index), draw, logprob in zip(targets, draws, logprobs, strict=True)
        ]

    def _prompt_logprobs(
        self, hidden: torch.Tensor, submitted: Submitted, dropped: list[Chunk]
    ) -> list[ChunkLogprobs]:
        """Of the prompt tokens that follow the plan's scored rows."""
        batch, plan = submitted
        found: list[ChunkLogprobs] = [(chunk, []) for chunk in batch.chunks if chunk.num_scored]
        segment = range(0)
        for rows in plan.scored_segments():
            segment = range(segment.stop, segment.stop + len(rows))
            logits = self._rank.logits(hidden, rows)
            own = range(0)
            for chunk, logprobs in found:
                own = range(own.stop, own.stop + chunk.num_scored)
                first, last = max(own.start, segment.start), min(own.stop, segment.stop)
                if first < last and chunk not in dropped:
                    part = logits[first - segment.start : last - segment.start]
                    logprobs.extend(self._score(part, chunk, first - own.start))
        return [(chunk, logprobs) for chunk, logprobs in found if chunk not in dropped]

    def _score(self, logits: torch.Tensor, chunk: Chunk, offset: int) -> list[TokenLogprob]:
        """Of the prompt tokens that follow a chunk's rows from `offset` on, logits [L, V]."""
        sequence, first = chunk.sequence, chunk.start + offset + 1
        following = sequence.token_ids[first : first + len(logits)]
        num_top = sequence.group.request.params.prompt_top_logprobs or 0
        return token_logprobs(logits, following, num_top, self._kernels)

    def _logprobs_of(
        self, logits: torch.Tensor, token_ids: list[int], wants: list[int | None]
    ) -> list[TokenLogprob | None]:
        found: list[TokenLogprob | None] = [None] * len(wants)
        for num_top in {want for want in wants if want is not None}:
            rows = [row for row, want in enumerate(wants) if want == num_top]
            chosen = [token_ids[row] for row in rows]
            batch = token_logprobs(logits[rows], chosen, num_top, self._kernels)
            for row, logprob in zip(rows, batch, strict=True):
                found[row] = logprob
        return found


def _row_sums(hidden: torch.Tensor, submitted: Submitted, dropped: list[Chunk]) -> list[ChunkSum]:
    """Of the chunks of prompts to embed, from hidden states [T, H]."""
    batch, plan = submitted
    sums: list[ChunkSum] = []
    for chunk, start in zip(batch.chunks, plan.query_starts.tolist(), strict=False):
        if chunk.sequence.group.request.embed and chunk not in dropped:
            rows = hidden[start : start + chunk.length]
            sums.append((chunk, rows.sum(0, dtype=torch.float64).cpu().numpy()))
    return sums


def _sample_indices(sequence: Sequence) -> range:
    """The samples that the sequence's next token is drawn for: all of them before the fork."""
    group = sequence.group
    if group.is_forked:
        return range(sequence.index, sequence.index + 1)
    return group.request.sample_indices
