"""The body of /v1/completions."""

from typing import Annotated, Literal

from pydantic import Field

from cluster.errors import invalid
from router.http.fields import Accepts, Many, TokenId, Uint32
from router.http.generation_body import GenerationBody

MAX_PROMPTS = 128

_DEFAULT_MAX_TOKENS = 16
"""As in OpenAI's API; chats have none."""

Prompt = Annotated[
    str | Many[str] | Many[TokenId] | Many[Many[TokenId]],
    Field(union_mode="left_to_right"),
    Accepts("a string, a list of strings, a list of token ids or a list of lists of token ids"),
]

Suffix = Annotated[Literal[""] | None, Accepts("null, as nothing can be inserted before a suffix")]


class CompletionBody(GenerationBody):
    """OpenAI's parameters of a text completion."""

    prompt: Prompt
    echo: bool | None = None
    logprobs: Uint32 | None = None
    best_of: Uint32 | None = None
    suffix: Suffix = None

    def prompts(self) -> list[str | list[int]]:
        """Each prompt as text or as token ids.

        Raises RequestError if there is none or there are too many.
        """
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [[token_id for token_id in self.prompt if isinstance(token_id, int)]]
        prompts = [prompt for prompt in self.prompt if not isinstance(prompt, int)]
        if not 1 <= len(prompts) <= MAX_PROMPTS:
            raise invalid("prompt", f"{len(prompts)} prompts", f"1 to {MAX_PROMPTS} prompts")
        return list(prompts)

    def output_limit(self) -> int:
        """The most tokens to generate for each prompt."""
        return _DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def check_best_of(self) -> None:
        """Raise RequestError if samples would have to be ranked."""
        if self.best_of not in {None, self.n or 1}:
            raise invalid("best_of", self.best_of, "null or the same as n, as nothing is ranked")
