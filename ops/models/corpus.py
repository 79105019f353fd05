"""What the demo models read: Python's own text, without what is held out for judging them."""

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import jinja2
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from ops.models.chat import Conversation, conversations
from ops.models.stdlib_text import Document, definitions, licence, sources, topics
from ops.models.tokens import BOS, CHAT_TEMPLATE, END

HELD_OUT_TOPICS = ("sequence-types", "raise", "binary", "global", "context-managers", "in")
HELD_OUT_MODULES = ("shelve", "sched", "bisect")
HELD_OUT_PARAGRAPH_CHARS = 60
"""Shorter paragraphs (headings, stock phrases) may stand in both texts."""

TOPIC_REPEATS = 4
"""The reference is one twentieth of the text and the part whose voice samples should have."""

DUPLICATE_CHARS = 200
"""A paragraph of at least this length is read once, wherever else it was copied to."""


@dataclass(frozen=True)
class Corpus:
    """Texts that end with an end token each, and the text kept away from training."""

    documents: tuple[str, ...]
    held_out: str


def build_corpus(seed: int) -> Corpus:
    """The corpus of this installation; the same for the same Python and seed."""
    rng = random.Random(seed)
    judged = _held_out()
    hidden = frozenset(p for p in _paragraphs(judged) if len(p) >= HELD_OUT_PARAGRAPH_CHARS)
    read = [_without(hidden, doc) for doc in topics() if _topic(doc) not in HELD_OUT_TOPICS]
    code = [doc for doc in sources() if doc.name not in HELD_OUT_MODULES]
    known = [d for d in definitions() if d.name.split(".")[0] not in HELD_OUT_MODULES]
    chats = [render(chat) for chat in conversations(known, read, rng)]
    texts = [doc.text for doc in read] * TOPIC_REPEATS
    texts += _without_copies([licence(), *code])
    documents = [f"{BOS}{text}{END}" for text in texts if text.strip()] + chats
    rng.shuffle(documents)
    return Corpus(tuple(documents), judged)


def render(chat: Conversation) -> str:
    """A conversation through the chat template."""
    return _template().render(bos_token=BOS, messages=chat.messages(), add_generation_prompt=False)


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> npt.NDArray[np.uint16]:
    """All documents' token ids, one after another: uint16 [tokens]."""
    encodings = tokenizer.encode_batch_fast(list(documents), add_special_tokens=False)
    return np.concatenate([np.asarray(e.ids, dtype=np.uint16) for e in encodings])


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(autoescape=False)  # plain text, never HTML
    return environment.from_string(CHAT_TEMPLATE)


def _held_out() -> str:
    chapters = [doc for doc in topics() if _topic(doc) in HELD_OUT_TOPICS]
    modules = [doc for doc in sources() if doc.name in HELD_OUT_MODULES]
    return "\n\n\n".join(doc.text.strip() for doc in chapters + modules) + "\n"


def _topic(document: Document) -> str:
    return document.name.removeprefix("topic ")


def _paragraphs(text: str) -> Iterator[str]:
    return (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _without(hidden: frozenset[str], document: Document) -> Document:
    kept = [p for p in document.text.split("\n\n") if " ".join(p.split()) not in hidden]
    return Document(document.name, "\n\n".join(kept))


def _without_copies(documents: Iterable[Document]) -> list[str]:
    seen: set[str] = set()
    texts = []
    for document in documents:
        kept = []
        for paragraph in document.text.split("\n\n"):
            if paragraph in seen:
                continue
            if len(paragraph) >= DUPLICATE_CHARS:
                seen.add(paragraph)
            kept.append(paragraph)
        texts.append("\n\n".join(kept))
    return texts
