"""A model's chat template, rendered in a sandbox."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from cluster.errors import Reason, RequestError

MAX_RENDERED_CHARS = 16 * 1024 * 1024
"""A longer conversation is refused; no context is that large."""

_RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template can raise over messages that it was not written for."""


class ChatTemplate:
    """Renders conversations as Hugging Face's `apply_chat_template` does, with a generation prompt.

    The template comes from the model's owner, the messages from any client: they reach the template
    as plain strings, and neither can make it reach Python's internals or render without bound.

    Raises jinja2.TemplateSyntaxError if `source` is no template.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._template = _environment().from_string(source)
        self._special_tokens = dict(special_tokens)

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for the answer to `messages`.

        Raises RequestError if the template refuses the messages.
        """
        variables: dict[str, Any] = {
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "tools": None,
            "documents": None,
            "add_generation_prompt": True,
        }
        try:
            return _join_bounded(self._template.generate(variables))
        except _RENDER_ERRORS as error:
            raise RequestError(
                Reason.INVALID_ARGUMENT,
                f"messages: the model's chat template refuses them: {error}",
                field="messages",
                accepted="messages that the model's chat template can render",
            ) from error


def _join_bounded(chunks: Iterator[str]) -> str:
    rendered: list[str] = []
    num_chars = 0
    for chunk in chunks:
        num_chars += len(chunk)
        if num_chars > MAX_RENDERED_CHARS:
            raise ValueError(f"more than {MAX_RENDERED_CHARS} characters")
        rendered.append(chunk)
    return "".join(rendered)


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which also refuses to build huge values by multiplication and powers."""

    intercepted_binops = frozenset(["*", "**"])

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "**" or _repeats(left, right) > MAX_RENDERED_CHARS:
            raise jinja2.exceptions.SecurityError(f"{operator} with a result of unknown size")
        return super().call_binop(context, operator, left, right)


def _repeats(left: Any, right: Any) -> int:
    """Length of `left * right` if one of them is a sequence, else 0."""
    for sequence, times in ((left, right), (right, left)):
        if isinstance(sequence, str | list | tuple) and isinstance(times, int):
            return len(sequence) * times
    return 0


class _GenerationBlock(jinja2.ext.Extension):
    """`{% generation %}`, with which templates mark the assistant's words for training."""

    tags = {"generation"}  # noqa: RUF012 (the base class declares a set)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> _Sandbox:
    """The environment that chat templates on the Hugging Face Hub are written for."""
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _GenerationBlock],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
