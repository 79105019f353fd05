"""Runs a step's plan through the model and draws its tokens."""

from typing import NamedTuple

import torch

from workers.engine.batch import Batch, Chunk
from workers.engine.batch_tensors import BatchTensors, StepInputs, bucket
from workers.engine.logprobs import token_logprobs
from workers.engine.request import TokenLogprob
from workers.engine.sampler import Draw, Sampler
from workers.engine.sequence import Sequence
from workers.engine.stopwatch import Stopwatch
from workers.kernels.cpu_sampling import CpuSampling
from workers.layers.attention import AttentionPlan
from workers.layers.kv_cache import KVCache
from workers.layers.workspace import Workspace
from workers.models.causal_lm import CausalLM
from workers.models.recorder import Recorder

_LOGITS_ROWS = 256
"""Prompt rows whose logits are held in memory at a time."""


class Sample(NamedTuple):
    """A token drawn for one sample of a request."""

    sequence: Sequence
    number: int
    """Which of the request's samples; not the sequence's own when the request is about to fork."""
    draw: Draw
    logprob: TokenLogprob | None


class StepResult(NamedTuple):
    """What a step brought forth."""

    samples: list[Sample]
    prompt_logprobs: list[tuple[Chunk, list[TokenLogprob]]]
    failed: list[Sequence]
    """Those whose values are not finite; they have no samples."""


class ModelRunner:
    """Owns the model, the KV cache's tensors and the memory that steps work in."""

    def __init__(
        self,
        model: CausalLM,
        cache: KVCache,
        *,
        block_size: int,
        max_num_tokens: int,
        watch: Stopwatch,
    ) -> None:
        """For steps of up to max_num_tokens tokens."""
        self._model = model
        self._cache = cache
        self._inputs = StepInputs(max_num_tokens, block_size, model.device)
        self._workspace = Workspace.allocate(
            model.shape, self._inputs.max_rows, model.dtype, model.device
        )
        self._recorder = Recorder(model.library)
        self._logits = torch.empty(0, model.config.vocab_size, device=model.device)
        self._kernels = None if model.library is None else CpuSampling(model.library)
        self._sampler = Sampler(model.config.eos_token_ids, self._kernels)
        self._watch = watch

    @torch.inference_mode()
    def run(self, batch: Batch) -> StepResult:
        """Compute the batch's chunks and sample where they reach their sequence's end."""
        self._cache.copy_blocks(batch.copies)
        tensors = self._inputs.fill(batch)
        plan = self._model.prepare(tensors.attention)
        self._watch.lap("build")
        hidden = self._forward(tensors, plan)
        starts = tensors.attention.query_starts
        failed = self._not_finite(hidden[: batch.num_tokens], batch.chunks, starts)
        placed = [
            (chunk, start)
            for chunk, start in zip(batch.chunks, starts, strict=False)
            if chunk.sequence not in failed
        ]
        prompt_logprobs = [
            (chunk, self._prompt_logprobs(hidden[start : start + chunk.length], chunk))
            for chunk, start in placed
            if _wants_prompt_logprobs(chunk)
        ]
        ends = [
            (chunk.sequence, start + chunk.length - 1) for chunk, start in placed if chunk.samples
        ]
        samples: list[Sample] = []
        if ends:
            logits = self._logits_of(hidden[torch.tensor([row for _, row in ends])])
            self._watch.lap("forward")
            samples = self._sample(logits, [sequence for sequence, _ in ends])
            self._watch.lap("sample")
        else:
            self._watch.lap("forward")
        return StepResult(samples, prompt_logprobs, failed)

    def _forward(self, tensors: BatchTensors, plan: AttentionPlan) -> torch.Tensor:
        token_ids, positions = tensors.token_ids, tensors.positions
        workspace = self._workspace.first(len(token_ids))
        self._recorder.run(
            len(token_ids),
            lambda: self._model.forward(token_ids, positions, self._cache, plan, workspace),
        )
        return workspace.normed

    def _not_finite(
        self, hidden: torch.Tensor, chunks: list[Chunk], starts: list[int]
    ) -> list[Sequence]:
        """The sequences with a row of hidden states, [T, H], that has NaN or infinity in it.

        Found here and not by their logits alone, so that a prompt read in several steps is caught
        before its blocks can be shared.
        """
        is_finite = hidden.new_empty(len(hidden), dtype=torch.bool)
        self._model.rows.are_finite(hidden, is_finite)
        if is_finite.all():
            return []
        return [
            chunk.sequence
            for chunk, start in zip(chunks, starts, strict=False)
            if not is_finite[start : start + chunk.length].all()
        ]

    def _logits_of(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 [R, vocab_size] of hidden states [R, H]; valid until the next call."""
        num_rows = len(hidden)
        if num_rows > len(self._logits):
            self._logits = self._logits.new_empty(bucket(num_rows), self._logits.shape[1])
        return self._model.logits(hidden, self._logits[:num_rows])

    def kernel_seconds(self) -> list[tuple[str, float]]:
        """See Engine."""
        return self._recorder.seconds()

    def clear_blocks(self, blocks: list[int]) -> None:
        """Clear blocks that hold values which are not finite, before anyone else gets them."""
        self._cache.zero_blocks(blocks)

    def _sample(self, logits: torch.Tensor, sequences: list[Sequence]) -> list[Sample]:
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

    def _prompt_logprobs(self, hidden: torch.Tensor, chunk: Chunk) -> list[TokenLogprob]:
        """For the prompt tokens that follow the chunk's rows, hidden [L, H]."""
        sequence = chunk.sequence
        following = sequence.token_ids[chunk.start + 1 : min(chunk.end + 1, sequence.num_prompt)]
        num_top = sequence.group.request.params.prompt_top_logprobs or 0
        found: list[TokenLogprob] = []
        for first in range(0, len(following), _LOGITS_ROWS):
            part = following[first : first + _LOGITS_ROWS]
            logits = self._logits_of(hidden[first : first + len(part)])
            found += token_logprobs(logits, part, num_top, self._kernels)
        return found

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


def _sample_indices(sequence: Sequence) -> range:
    """The samples that the sequence's next token is drawn for: all of them before the fork."""
    group = sequence.group
    if group.is_forked:
        return range(sequence.index, sequence.index + 1)
    return range(group.request.params.n)


def _wants_prompt_logprobs(chunk: Chunk) -> bool:
    wanted = chunk.sequence.group.request.params.prompt_top_logprobs is not None
    return wanted and chunk.sequence.num_output == 0
