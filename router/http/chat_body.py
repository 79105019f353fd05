"""The body of /v1/chat/completions."""

from typing import Annotated, Literal

from pydantic import Field
from trunkline.v1 import inference_pb2 as pb

from cluster.errors import invalid
from router.http.fields import Accepts, Body, Ignored, Many, NotSupported, Uint32
from router.http.generation_body import GenerationBody


class TextPart(Body):
    """A piece of a message's content."""

    type: Literal["text"]
    text: str


class TextFormat(Body):
    """The only format that answers can have."""

    type: Literal["text"]


Content = Annotated[
    str | Many[TextPart] | None, Accepts("a string or a list of parts of type text")
]

Modalities = Annotated[list[Literal["text"]] | None, Accepts('["text"]')]

ResponseFormat = Annotated[TextFormat | None, Accepts("an object of type text")]

ToolChoice = Annotated[
    Literal["none", "auto"] | None, Accepts('"none" or "auto", as tools are not supported')
]


class Message(Body):
    """A turn of the conversation; an answer of ours can be sent back as it is."""

    role: Annotated[str, Field(min_length=1)]
    content: Content = None
    name: str | None = None
    annotations: NotSupported = None
    audio: NotSupported = None
    function_call: NotSupported = None
    refusal: NotSupported = None
    tool_calls: NotSupported = None

    def text(self) -> str:
        """The content in one piece."""
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class ChatBody(GenerationBody):
    """OpenAI's parameters of a chat completion."""

    messages: Annotated[Many[Message], Field(min_length=1)]
    max_completion_tokens: Uint32 | None = None
    logprobs: bool | None = None
    top_logprobs: Uint32 | None = None

    parallel_tool_calls: Ignored = None
    response_format: ResponseFormat = None
    modalities: Modalities = None
    tool_choice: ToolChoice = None
    tools: NotSupported = None
    audio: NotSupported = None
    function_call: NotSupported = None
    functions: NotSupported = None
    moderation: NotSupported = None
    prediction: NotSupported = None
    reasoning_effort: NotSupported = None
    verbosity: NotSupported = None
    web_search_options: NotSupported = None

    def output_limit(self) -> int | None:
        """The most tokens to generate, by whichever name.

        Raises RequestError if the two names disagree.
        """
        if self.max_completion_tokens is None:
            return self.max_tokens
        if self.max_tokens not in {None, self.max_completion_tokens}:
            raise invalid("max_tokens", self.max_tokens, "only one of it and max_completion_tokens")
        return self.max_completion_tokens

    def logprobs_wanted(self) -> int | None:
        """How many likeliest tokens to name at each position; None for no log-probabilities.

        Raises RequestError if they are counted but not asked for.
        """
        if self.logprobs:
            return self.top_logprobs or 0
        if self.top_logprobs:
            raise invalid("top_logprobs", self.top_logprobs, "null or 0, unless logprobs is true")
        return None

    def conversation(self) -> list[pb.ChatMessage]:
        """The messages as the contract has them."""
        return [
            pb.ChatMessage(
                # OpenAI's newer name for the system's turn, which templates do not know.
                role="system" if message.role == "developer" else message.role,
                content=message.text(),
                name=message.name or "",
            )
            for message in self.messages
        ]
