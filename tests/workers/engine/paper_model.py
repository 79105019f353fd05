"""A model that can be reckoned on paper: what it would say is known without any cache."""

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from workers.engine.batch import Batch, Chunk
from workers.engine.model_runner import Sample, StepResult, Submitted
from workers.engine.request import TokenLogprob
from workers.engine.sampler import Draw
from workers.engine.step_inputs import make_plan
from workers.engine.step_plan import StepPlan

Ints = npt.NDArray[np.int64]

POISON = 40
"""As a token of a prompt: from there on the sequence's values are not finite."""
STOP = 0
_VOCABULARY = 40
_NAN = -1


@dataclass(frozen=True)
class PaperModel:
    """Each next token follows from those in sight, their positions and the sample's number."""

    window: int | None

    def seen(self, token_ids: list[int]) -> list[int]:
        """What the last token's query sees."""
        return token_ids if self.window is None else token_ids[-self.window :]

    def score(self, seen: list[int], position: int) -> int:
        """Stands for the logits after the token at a position."""
        total = position
        for token in seen:
            total = (31 * total + token + 7) % 1_000_003
        return total

    def token(self, score: int, number: int) -> int:
        """The next token of one sample."""
        return (score + 5 * number) % _VOCABULARY

    def output(self, prompt: list[int], number: int, limit: int) -> list[int]:
        """All that one sample of a request should get."""
        token_ids, output = list(prompt), list[int]()
        while len(output) < limit and STOP not in output:
            score = self.score(self.seen(token_ids), len(token_ids) - 1)
            output.append(self.token(score, number))
            token_ids.append(output[-1])
        return output


class PaperRunner:
    """A StepRunner that computes late: when a step is collected, in memory that all steps share.

    Like a real one it knows nothing but plans, and blocks that others have left NaN in harm it,
    also where it does not look.
    """

    def __init__(self, model: PaperModel, num_blocks: int, block_size: int) -> None:
        self._model = model
        self._block_size = block_size
        self._tokens = np.zeros((num_blocks, block_size), dtype=np.int64)
        self._positions = np.zeros((num_blocks, block_size), dtype=np.int64)
        self._slots: dict[int, tuple[Ints, Ints]] = {}
        self._submitted: deque[StepPlan] = deque()

    def submit(self, batch: Batch) -> Submitted:
        """See StepRunner."""
        plan = make_plan(batch, self._block_size)
        self._submitted.append(StepPlan.read(plan.buffer.copy()))
        return Submitted(batch, plan)

    def collect(self, submitted: Submitted) -> StepResult:
        """See StepRunner."""
        plan, chunks = self._submitted.popleft(), submitted.batch.chunks
        self._write(plan)
        scores = self._scores(plan)
        starts = plan.query_starts.tolist()
        fresh = [(c, first) for c, first in zip(chunks, starts, strict=False) if not c.is_stale]
        failed = [c.sequence for c, first in fresh if None in scores[first : first + c.length]]
        kept = [(c, first) for c, first in fresh if c.sequence not in failed]
        assert plan.sampled_rows.tolist() == [
            first + c.length - 1 for c, first in zip(chunks, starts, strict=False) if c.samples
        ]
        samples = [
            sample for c, first in kept if c.samples for sample in self._draw(c, scores[first:])
        ]
        logprobs = [
            (c, [self._logprob(c, row, scores[first + row]) for row in range(c.num_scored)])
            for c, first in kept
            if c.num_scored
        ]
        return StepResult(samples, logprobs, [], failed)

    def _write(self, plan: StepPlan) -> None:
        for block, slot in plan.save_pairs:
            self._slots[slot] = self._tokens[block].copy(), self._positions[block].copy()
        self._tokens[plan.cleared] = 0
        self._positions[plan.cleared] = 0
        for source, destination in plan.copy_pairs:
            self._tokens[destination] = self._tokens[source]
            self._positions[destination] = self._positions[source]
        for slot, block in plan.load_pairs:
            self._tokens[block], self._positions[block] = self._slots[slot]
        token_ids = plan.token_ids[: plan.num_tokens]
        self._tokens.reshape(-1)[plan.slots] = np.where(token_ids == POISON, _NAN, token_ids)
        self._positions.reshape(-1)[plan.slots] = plan.positions[: plan.num_tokens]

    def _scores(self, plan: StepPlan) -> list[int | None]:
        """Of all rows; None where they are not finite."""
        metadata = plan.metadata(self._block_size, torch.device("cpu"))
        scores: list[int | None] = []
        starts = metadata.query_starts
        for index, (end, table) in enumerate(
            zip(metadata.context_lens, metadata.block_tables, strict=True)
        ):
            blocks = np.asarray(table)
            tokens = self._tokens[blocks].reshape(-1)
            positions = self._positions[blocks].reshape(-1)
            for position in range(end - starts[index + 1] + starts[index], end):
                window = self._model.window
                first = 0 if window is None else max(0, position - window + 1)
                seen = tokens[first : position + 1].tolist()
                assert positions[first : position + 1].tolist() == [*range(first, position + 1)]
                is_finite = _NAN not in tokens[first // self._block_size * self._block_size :]
                scores.append(self._model.score(seen, position) if is_finite else None)
        return scores

    def _draw(self, chunk: Chunk, scores: list[int | None]) -> list[Sample]:
        sequence, group = chunk.sequence, chunk.sequence.group
        score = scores[chunk.length - 1]
        assert score is not None
        is_first = not group.is_forked
        numbers = range(group.request.params.n) if is_first else [sequence.index]
        return [Sample(sequence, n, Draw(self._model.token(score, n)), None) for n in numbers]

    def _logprob(self, chunk: Chunk, row: int, score: int | None) -> TokenLogprob:
        assert score is not None
        return TokenLogprob(chunk.sequence.token_ids[chunk.start + row + 1], float(score), [])
