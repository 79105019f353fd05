"""Log-probabilities in the forms that the two kinds of completion give them."""

import codecs
from collections.abc import Iterable
from typing import Any

from trunkline.v1 import inference_pb2 as pb

LEAST_LOGPROB = -9999.0
"""OpenAI's number for impossible; JSON has none for minus infinity."""

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


def chat_logprobs(logprobs: Iterable[pb.TokenLogprob]) -> dict[str, Any]:
    """The form of chats: an object for each token."""
    content = [
        {
            **_chat_candidate(logprob.token),
            "top_logprobs": [_chat_candidate(candidate) for candidate in logprob.top],
        }
        for logprob in logprobs
    ]
    return {"content": content, "refusal": None}


def prompt_logprobs(logprobs: Iterable[pb.TokenLogprob]) -> list[dict[str, Any] | None]:
    """vLLM's form for prompts: the candidates by token id, nothing for the first token."""
    return [None, *(_by_token_id(logprob) for logprob in logprobs)]


class TextLogprobs:
    """The form of text completions: parallel lists, with each token's offset in the text."""

    def __init__(self) -> None:
        self._utf8 = _Utf8Decoder(errors="replace")
        self._offset = 0
        self._lists: dict[str, list[Any]] = self._empty()

    def add_first(self, text: str) -> None:
        """Adds the prompt's first token, which has no probability."""
        self._append(text, None, None)
        self._offset += len(text)

    def add(self, logprobs: Iterable[pb.TokenLogprob]) -> None:
        """Adds tokens."""
        for logprob in logprobs:
            candidates = [*logprob.top, logprob.token]
            top = {_name(candidate): _finite(candidate.logprob) for candidate in candidates}
            self._append(_name(logprob.token), _finite(logprob.token.logprob), top)
            self._offset += len(self._utf8.decode(logprob.token.text))

    def take(self) -> dict[str, list[Any]]:
        """The lists of what has been added since the last call; offsets go on."""
        taken, self._lists = self._lists, self._empty()
        return taken

    def _append(self, token: str, logprob: float | None, top: dict[str, float] | None) -> None:
        self._lists["tokens"].append(token)
        self._lists["token_logprobs"].append(logprob)
        self._lists["top_logprobs"].append(top)
        self._lists["text_offset"].append(self._offset)

    @staticmethod
    def _empty() -> dict[str, list[Any]]:
        return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


def _chat_candidate(candidate: pb.TokenLogprob.Candidate) -> dict[str, Any]:
    return {
        "token": _name(candidate),
        "logprob": _finite(candidate.logprob),
        "bytes": list(candidate.text),
    }


def _by_token_id(logprob: pb.TokenLogprob) -> dict[str, Any]:
    ranks: dict[int, int] = {top.token_id: rank for rank, top in enumerate(logprob.top, start=1)}
    return {
        str(candidate.token_id): {
            "logprob": _finite(candidate.logprob),
            "rank": ranks.get(candidate.token_id),
            "decoded_token": _name(candidate),
        }
        for candidate in [*logprob.top, logprob.token]
    }


def _name(candidate: pb.TokenLogprob.Candidate) -> str:
    return candidate.text.decode(errors="replace")


def _finite(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)
