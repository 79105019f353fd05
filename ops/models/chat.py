"""Conversations made from docstrings and sources, so that the chat template means something."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from ops.models.stdlib_text import Definition, Document

MAX_ANSWER_CHARS = 1000
MAX_SOURCE_CHARS = 900

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant that knows Python.",
    "Answer questions about Python and its standard library.",
)

SMALL_TALK = (
    ("Hello!", "Hello! Ask me about Python: its modules, its classes, its syntax."),
    ("Hi", "Hello! Ask me about Python: its modules, its classes, its syntax."),
    (
        "Who are you?",
        "I am the demo model of Trunkline: a small language model, trained on the text "
        "that comes with Python.",
    ),
    (
        "What can you do?",
        "I can tell you what Python's functions, classes and modules do, and show you their "
        "sources. I am a very small model, so please check what I say.",
    ),
    ("Thank you!", "You are welcome."),
    ("Thanks", "You are welcome."),
)

QUESTIONS = {
    "function": (
        "What does {name} do?",
        "What does `{name}` do?",
        "Explain {name}.",
        "How do I use {name}?",
        "Tell me about the function {name}.",
    ),
    "class": (
        "What is {name}?",
        "What is the class `{name}` for?",
        "Explain {name}.",
        "Tell me about {name}.",
    ),
    "module": (
        "What is the module {name} for?",
        "What does the {name} module do?",
        "Tell me about the module `{name}`.",
    ),
    "topic": (
        "Explain {name} in Python.",
        "What does the Python reference say about {name}?",
        "Tell me about {name}.",
        "What do I have to know about {name}?",
    ),
    "source": (
        "Show me the source of {name}.",
        "Show me the source of `{name}`.",
        "How is {name} implemented?",
        "What does the code of {name} look like?",
    ),
}


@dataclass(frozen=True)
class Turn:
    """What a user asks, and what the assistant answers."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns behind an optional system prompt."""

    system: str | None
    turns: tuple[Turn, ...]

    def messages(self) -> list[dict[str, str]]:
        """The conversation as chat templates take it."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            messages.append({"role": "user", "content": turn.question})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages


def conversations(
    definitions: Sequence[Definition], topics: Sequence[Document], rng: random.Random
) -> list[Conversation]:
    """Every definition asked about once, its source too where short, every topic in every way.

    Neighbours in a module share a conversation of one to three turns, as people ask.
    """
    turns = [turn for definition in definitions for turn in _definition_turns(definition, rng)]
    found = []
    while turns:
        size = rng.choice((1, 1, 1, 2, 3))
        found.append(_conversation(turns[:size], rng))
        del turns[:size]
    found += [_conversation([turn], rng) for topic in topics for turn in _topic_turns(topic)]
    small_talk = len(found) // 50
    found += [_conversation([Turn(*rng.choice(SMALL_TALK))], rng) for _ in range(small_talk)]
    return found


def _conversation(turns: Sequence[Turn], rng: random.Random) -> Conversation:
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.3 else None
    return Conversation(system, tuple(turns))


def _definition_turns(definition: Definition, rng: random.Random) -> list[Turn]:
    name = _spoken_name(definition.name)
    question = rng.choice(QUESTIONS[definition.kind]).format(name=name)
    turns = [Turn(question, _opening(definition.doc))]
    if 0 < len(definition.source) <= MAX_SOURCE_CHARS:
        question = rng.choice(QUESTIONS["source"]).format(name=name)
        turns.append(Turn(question, f"```python\n{definition.source}\n```"))
    return turns


def _topic_turns(topic: Document) -> list[Turn]:
    title, _, text = topic.text.partition("\n")
    answer = _opening(text.lstrip("*=-\n"))
    name = title[:1].lower() + title[1:]
    return [Turn(question.format(name=name), answer) for question in QUESTIONS["topic"]]


def _spoken_name(name: str) -> str:
    """The name under which people know what is defined under another: os.path.join, len."""
    for inner, outer in (("builtins.", ""), ("posixpath.", "os.path."), ("posix.", "os.")):
        if name.startswith(inner):
            return outer + name.removeprefix(inner)
    return name


def _opening(text: str) -> str:
    """The first paragraphs, as many as fit into an answer; at least one."""
    paragraphs = text.strip().split("\n\n")
    kept = paragraphs[0]
    for paragraph in paragraphs[1:]:
        if len(kept) + len(paragraph) > MAX_ANSWER_CHARS:
            break
        kept += "\n\n" + paragraph
    return kept.rstrip()
