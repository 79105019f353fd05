"""One model's text side."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import jinja2
from tokenizers import Tokenizer

from cluster.errors import Reason, RequestError
from cluster.model_card import ModelCard
from router.text.chat_template import ChatTemplate
from router.text.detokenizer import Detokenizer
from router.text.pieces import Pieces

LONG_CHARS = 8192
"""Text that takes some milliseconds to tokenize; longer ones should leave the event loop."""


class TextCodec:
    """Turns a model's text into tokens and back.

    Safe to use from several threads. Raises ValueError if the card's tokenizer cannot be used.
    """

    def __init__(self, card: ModelCard) -> None:
        self._model = card.name
        self._tokenizer = _load_tokenizer(card.tokenizer_json)
        self._pieces = Pieces.of(self._tokenizer)
        self._template_problem = "has no chat template"
        self._template: ChatTemplate | None = None
        if card.chat_template is not None:
            try:
                self._template = ChatTemplate(card.chat_template, card.special_tokens)
            except jinja2.TemplateSyntaxError as error:
                self._template_problem = f"has a broken chat template: line {error.lineno}: {error}"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, with the special tokens that the model expects around a prompt.

        While a text longer than LONG_CHARS is tokenized, other threads can run.
        """
        if len(text) <= LONG_CHARS:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        # The library lets go of the interpreter's lock for batches only.
        batch = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        return batch[0].ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`; special tokens and ids outside the vocabulary are skipped."""
        detokenizer = self.detokenizer()
        return detokenizer.push(token_ids) + detokenizer.flush()

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt that asks the model to answer `messages`.

        Raises RequestError if the model has no chat template or it refuses the messages.
        """
        if self._template is None:
            raise RequestError(
                Reason.INVALID_ARGUMENT,
                f"model: {self._model} {self._template_problem}, so it can only continue prompts",
                field="model",
                value=self._model,
                accepted="a model with a chat template",
            )
        return self._template.render(messages)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of the rendered `messages`; their special tokens are the template's own."""
        return self.encode(self.render_chat(messages), add_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token inside a text, special tokens as their name."""
        return self._pieces.spelled(token_id)

    def first_text(self, token_ids: Iterable[int]) -> list[int]:
        """The first of `token_ids` that is text, alone; none if they are all special."""
        is_text = (token_id for token_id in token_ids if self._pieces.first(token_id) is not None)
        return list(islice(is_text, 1))

    def detokenizer(self, after: Iterable[int] = ()) -> Detokenizer:
        """A fresh incremental decoder for one sample, which continues the prompt `after`."""
        return Detokenizer(self._pieces, after)


def _load_tokenizer(tokenizer_json: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"tokenizer.json cannot be read: {error}") from error
    # Training-time settings that would cut or pad prompts silently.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
