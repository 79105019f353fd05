"""What has arrived of an answer."""

from typing import TypeAlias, TypeVar

from trunkline.errors import InternalError
from trunkline.types import Delta, FinishReason, Timings, TokenLogprob, Usage
from trunkline.v1 import inference_pb2 as pb

Response: TypeAlias = pb.GenerateResponse | pb.ChatResponse

_T = TypeVar("_T")


class Received:
    """Gathers the messages of one answer; the base of both kinds of streams."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        """Names the request in the server's log; known from the first message on."""
        self.model = ""
        """The model that answers; known from the first message on."""
        self.prompt_logprobs: tuple[TokenLogprob, ...] = ()
        """From the first message on, if asked for."""
        self._pieces: dict[int, list[str]] = {}
        self._failed_samples: set[int] = set()
        self._usage: Usage | None = None
        self._timings: Timings | None = None
        self._started = False

    @property
    def usage(self) -> Usage:
        """Tokens read and written. Raises RuntimeError before the end of the stream."""
        return _at_end(self._usage)

    @property
    def timings(self) -> Timings:
        """How long the answer took. Raises RuntimeError before the end of the stream."""
        return _at_end(self._timings)

    def _take(self, response: Response) -> Delta | None:
        """Adds a message to what is known; gives the delta in it, if there is one."""
        self._started = True
        self.request_id = response.request_id or self.request_id
        self.model = response.model or self.model
        if response.prompt_logprobs:
            self.prompt_logprobs = tuple(map(TokenLogprob.of, response.prompt_logprobs))
        if response.HasField("usage"):
            self._usage = Usage.of(response.usage)
        if response.HasField("timings"):
            self._timings = Timings.of(response.timings)
        if not response.HasField("delta"):
            return None
        delta = Delta.of(response.delta)
        self._pieces.setdefault(delta.index, []).append(delta.text)
        if delta.finish_reason is FinishReason.ERROR:
            self._failed_samples.add(delta.index)
        return delta

    def _whole_texts(self) -> list[str]:
        if self._failed_samples:
            failed = ", ".join(map(str, sorted(self._failed_samples)))
            raise InternalError(
                f"request {self.request_id}: the server failed at sample {failed}",
                reason="SAMPLE_FAILED",
            )
        return ["".join(pieces) for _, pieces in sorted(self._pieces.items())]


def _at_end(value: _T | None) -> _T:
    if value is None:
        raise RuntimeError("known when the stream has been read to its end")
    return value
