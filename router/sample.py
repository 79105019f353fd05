"""One sample of a request on its way from tokens to text."""

from trunkline.internal.v1 import replica_pb2 as internal
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1 import sampling_pb2

from router.logprobs import add_bytes
from router.text.codec import TextCodec
from router.text.stop_strings import StopStrings


class Sample:
    """Detokenizes a sample and ends it at a stop string.

    A stop string counts only if it begins after the first `min_tokens - 1` tokens; text before
    that is never held back. A stop token is delivered as a token, but not as text.
    """

    def __init__(
        self,
        index: int,
        codec: TextCodec,
        prompt_token_ids: list[int],
        stop: sampling_pb2.StopConditions,
    ) -> None:
        self._index = index
        self._codec = codec
        self._min_tokens = stop.min_tokens
        self._detokenizer = codec.detokenizer(prompt_token_ids)
        self._stop_strings = StopStrings(stop.stop_strings)
        self.num_tokens = 0
        self.finish_reason = pb.FINISH_REASON_UNSPECIFIED

    @property
    def is_finished(self) -> bool:
        """Whether its last delta has been made."""
        return self.finish_reason != pb.FINISH_REASON_UNSPECIFIED

    def push(self, output: internal.SampleOutput) -> pb.Delta:
        """What `output` adds to the sample, which must not be finished."""
        if self._stop_strings.is_idle and not (output.finish_reason or output.logprobs):
            token_ids = output.token_ids
            self.num_tokens += len(token_ids)
            text = self._detokenizer.push(token_ids)
            return pb.Delta(index=self._index, token_ids=token_ids, text=text)
        return self._push_each(output)

    def _push_each(self, output: internal.SampleOutput) -> pb.Delta:
        """The same for whatever may end the sample, or has log-probabilities."""
        delta = pb.Delta(index=self._index)
        texts: list[str] = []
        for position, token_id in enumerate(output.token_ids):
            delta.token_ids.append(token_id)
            if output.logprobs:
                delta.logprobs.append(output.logprobs[position])
            self.num_tokens += 1
            if output.HasField("stop_token_id") and position == len(output.token_ids) - 1:
                break
            if self._add(delta, texts, self._detokenizer.push((token_id,))):
                break
        if output.finish_reason and not delta.HasField("stop_string"):
            self._finish(delta, texts, output)
        # Set once: a message keeps the memory of every text that it has held.
        delta.text = "".join(texts)
        self.finish_reason = delta.finish_reason
        add_bytes(delta.logprobs, self._codec)
        return delta

    def _add(self, delta: pb.Delta, texts: list[str], text: str) -> bool:
        """Add text to the delta's; returns whether that has ended the sample."""
        if self.num_tokens < self._min_tokens:
            texts.append(text)
            return False
        match = self._stop_strings.push(text)
        texts.append(match.text)
        if match.stop_string is None:
            return False
        delta.stop_string = match.stop_string
        delta.finish_reason = pb.FINISH_REASON_STOP
        return True

    def _finish(self, delta: pb.Delta, texts: list[str], output: internal.SampleOutput) -> None:
        """Add what was held back, as the engine has ended the sample."""
        if self._add(delta, texts, self._detokenizer.flush()):
            return
        texts.append(self._stop_strings.flush())
        delta.finish_reason = output.finish_reason
        if output.HasField("stop_token_id"):
            delta.stop_token_id = output.stop_token_id
