"""From samples to the choices of a text completion."""

from collections.abc import Iterable, Sequence
from typing import Any

from trunkline.v1 import inference_pb2 as pb

from router.http.answer_parts import ending
from router.http.echo import Echo
from router.http.logprobs import TextLogprobs


class CompletionChoices:
    """The choices of one body, whole or growing.

    `n` is the number of samples of each prompt; `echoes` has an element for each prompt or none.
    """

    def __init__(self, n: int, echoes: Sequence[Echo], *, with_logprobs: bool) -> None:
        self._n = n
        self._echoes = echoes
        self._with_logprobs = with_logprobs
        self._prompt_logprobs: dict[int, list[pb.TokenLogprob]] = {}
        self._logprobs: dict[int, TextLogprobs] = {}

    def set_prompt_logprobs(self, prompt: int, logprobs: Iterable[pb.TokenLogprob]) -> None:
        """What the prompt's echo is to show; to be called before its first choice."""
        self._prompt_logprobs[prompt] = list(logprobs)

    def choice(self, prompt: int, delta: pb.Delta) -> dict[str, Any]:
        """The part of a choice that `delta` adds; the first one begins with the echo."""
        index = prompt * self._n + delta.index
        echo = self._begin(index, prompt)
        logprobs = self._logprobs[index]
        logprobs.add(delta.logprobs)
        return {
            "index": index,
            "text": echo + delta.text,
            "logprobs": logprobs.take() if self._with_logprobs else None,
            **ending(delta),
        }

    def _begin(self, index: int, prompt: int) -> str:
        """The text with which a choice begins, if it has not begun."""
        if index in self._logprobs:
            return ""
        logprobs = self._logprobs[index] = TextLogprobs()
        if not self._echoes:
            return ""
        logprobs.add_first(self._echoes[prompt].first_token)
        logprobs.add(self._prompt_logprobs.get(prompt, ()))
        return self._echoes[prompt].text
