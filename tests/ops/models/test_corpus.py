"""The corpus: Python's own text, whole, without tables, and without what is held out."""

import pytest

from ops.models.chat import Conversation, Turn
from ops.models.corpus import HELD_OUT_PARAGRAPH_CHARS, Corpus, build_corpus, render
from ops.models.stdlib_text import definitions, sources, topics


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(seed=0)


@pytest.fixture(scope="module")
def modules() -> dict[str, str]:
    return {document.name: document.text for document in sources()}


def test_held_out_paragraphs_of_the_reference_are_nowhere_in_the_corpus(corpus: Corpus) -> None:
    read = "\n".join(" ".join(text.split()) for text in corpus.documents)
    paragraphs = [" ".join(p.split()) for p in corpus.held_out.split("\n\n")]
    judged = [p for p in paragraphs if len(p) >= HELD_OUT_PARAGRAPH_CHARS]
    assert len(judged) > 100
    assert [p for p in judged if p in read] == []


def test_every_document_begins_and_ends(corpus: Corpus) -> None:
    assert all(text.startswith("<|bos|>") for text in corpus.documents)
    assert all(text.rstrip("\n").endswith("<|end|>") for text in corpus.documents)


def test_the_corpus_is_of_a_size_to_learn_from(corpus: Corpus) -> None:
    assert sum(map(len, corpus.documents)) > 8_000_000


def test_only_pythons_own_text_is_read(modules: dict[str, str]) -> None:
    names = {name.split(".")[0] for name in modules}
    assert {"os", "argparse", "asyncio"} <= names
    assert names.isdisjoint({"torch", "pip", "test", "encodings", "idlelib", "site-packages"})


def test_long_tables_are_left_out(modules: dict[str, str]) -> None:
    assert "codepoint2name" in modules["html.entities"]
    assert "'Aacute;'" not in modules["html.entities"]


def test_definitions_know_their_docstrings_and_sources() -> None:
    known = {definition.name: definition for definition in definitions()}
    assert known["heapq.heapify"].kind == "function"
    assert known["collections.OrderedDict"].doc == "Dictionary that remembers insertion order"
    assert known["textwrap.dedent"].source.startswith("def dedent(text):")
    assert known["builtins.len"].doc.endswith("Return the number of items in a container.")


def test_the_reference_is_read() -> None:
    assert any(document.name == "topic with" for document in topics())


def test_conversations_go_through_the_chat_template() -> None:
    chat = Conversation("Be brief.", (Turn("Hi", "Hello!"),))
    assert render(chat) == (
        "<|bos|><|system|>\nBe brief.<|end|>\n<|user|>\nHi<|end|>\n<|assistant|>\nHello!<|end|>\n"
    )
