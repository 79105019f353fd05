"""Takes a step's results into the sequences, and says what has become of the requests."""

from dataclasses import replace
from time import monotonic

from workers.engine.batch import Batch, Chunk
from workers.engine.mean_pool import Doubles
from workers.engine.model_runner import Sample, StepResult
from workers.engine.request import FinishReason, SampleOutput, Started
from workers.engine.scheduler import Scheduler
from workers.engine.sequence import Sequence
from workers.engine.stats import Stats

_NOT_FINITE = "the model's values are not finite"


class Bookkeeper:
    """Appends sampled tokens, forks requests into their samples, and ends samples."""

    def __init__(self, scheduler: Scheduler, stats: Stats, eos_token_ids: tuple[int, ...]) -> None:
        self._scheduler = scheduler
        self._stats = stats
        self._eos_token_ids = frozenset(eos_token_ids)

    def commit(self, batch: Batch, result: StepResult) -> list[SampleOutput]:
        """The outputs of a step that computed `batch` and brought forth `result`.

        What it computed for sequences that have lost their blocks meanwhile is dropped.
        """
        chunks = [chunk for chunk in batch.chunks if not chunk.is_stale]
        outputs = [output for s in result.failed for output in self._fail(s, _NOT_FINITE)]
        now = monotonic()
        for chunk in chunks:
            sequence, group = chunk.sequence, chunk.sequence.group
            if not group.is_started:
                group.is_started = True
                group.started = Started(group.cached_prompt_tokens, now - group.arrived_at)
                self._stats.prompt_tokens += len(group.request.prompt_token_ids)
                self._stats.hit_tokens += group.cached_prompt_tokens
                self._stats.tiers.host_hit_tokens += group.loaded_tokens.host
                self._stats.tiers.redis_hit_tokens += group.loaded_tokens.redis
            if sequence not in result.failed:
                sequence.num_computed = chunk.end
                self._scheduler.blocks.register_full(sequence)
        for chunk, logprobs in result.prompt_logprobs:
            # Assigned by position, since a preempted prompt is computed again.
            chunk.sequence.group.prompt_logprobs[chunk.start :] = logprobs
        for chunk, row_sum in result.row_sums:
            outputs += self._pool(chunk, row_sum)
        # All forks come first: a sample that ends with its first token gives its blocks back.
        owners = [self._owner(sample) for sample in result.samples]
        for sequence, sample in zip(owners, result.samples, strict=True):
            outputs += self._accept(sequence, sample)
        return outputs

    def cut_off(
        self, sequence: Sequence, reason: FinishReason, error: str = ""
    ) -> list[SampleOutput]:
        """The end of a sample in mid-air, and of those that were still to be forked from it."""
        group = sequence.group
        last = self._end(sequence, reason, [], error)
        unborn = () if group.is_forked else group.request.sample_indices[1:]
        return [*(replace(last, index=index, request_done=False) for index in unborn), last]

    def _end(
        self, sequence: Sequence, reason: FinishReason, token_ids: list[int], error: str = ""
    ) -> SampleOutput:
        """The last output of a sample, whose blocks are given back."""
        group = sequence.group
        self._scheduler.remove(sequence)
        if reason is FinishReason.STOP and not group.request.embed:
            self._scheduler.output_length.observe(sequence.num_output)
        output = _output(sequence, token_ids)
        output.finish_reason = reason
        output.error = error
        output.request_done = not group.live
        return output

    def _pool(self, chunk: Chunk, row_sum: Doubles) -> list[SampleOutput]:
        """Add a chunk's rows to the embedding of its prompt, and end with that if it is whole."""
        sequence, group = chunk.sequence, chunk.sequence.group
        group.mean_pool.add(chunk.start, chunk.length, row_sum)
        if chunk.end < len(sequence.token_ids):
            return []
        output = self._end(sequence, FinishReason.STOP, [])
        output.embedding = group.mean_pool.embedding()
        output.started, group.started = group.started, None
        return [output]

    def _owner(self, sample: Sample) -> Sequence:
        """The sequence that the sampled token goes to: a new one when the request forks."""
        sequence = sample.sequence
        if sample.number == sequence.index:
            return sequence
        sequence.group.is_forked = True
        return self._scheduler.fork(sequence, sample.number)

    def _accept(self, sequence: Sequence, sample: Sample) -> list[SampleOutput]:
        """Add a sampled token to its sequence, and end it if that was its last."""
        if sample.draw.error:
            return self._fail(sequence, sample.draw.error)
        token_id = sample.draw.token_id
        sequence.append(token_id)
        group = sequence.group
        if self._stops(sequence, token_id):
            output = self._end(sequence, FinishReason.STOP, [token_id])
            output.stop_token_id = token_id
        elif sequence.num_output >= group.max_output:
            output = self._end(sequence, FinishReason.LENGTH, [token_id])
        else:
            output = _output(sequence, [token_id])
        if sample.logprob is not None:
            output.logprobs = [sample.logprob]
        output.prompt_logprobs, group.prompt_logprobs = group.prompt_logprobs, []
        output.started, group.started = group.started, None
        return [output]

    def _stops(self, sequence: Sequence, token_id: int) -> bool:
        params = sequence.group.request.params
        is_eos = token_id in self._eos_token_ids and not params.ignore_eos
        is_stop = is_eos or token_id in params.stop_token_ids
        return is_stop and sequence.num_output >= params.min_tokens

    def _fail(self, sequence: Sequence, error: str) -> list[SampleOutput]:
        """End a sample that went wrong."""
        outputs = self.cut_off(sequence, FinishReason.ERROR, error)
        self._stats.failed_samples += len(outputs)
        return outputs


def _output(sequence: Sequence, token_ids: list[int]) -> SampleOutput:
    """New tokens of a sample, which it has already."""
    position = sequence.num_output - len(token_ids)
    return SampleOutput(sequence.group.request.request_id, sequence.index, token_ids, position)
