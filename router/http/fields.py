"""The kinds of field that request bodies are made of."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Body(BaseModel):
    """A JSON object of which every field is known and has its own type."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Accepts:
    """Annotates a field with the words in which errors say what it accepts."""

    accepted: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.custom_error_schema(
            handler(source),
            custom_error_type="accepts",
            custom_error_message="expected {accepted}",
            custom_error_context={"accepted": self.accepted},
        )


Uint32 = Annotated[int, Field(ge=0, le=2**32 - 1)]

TokenId = Uint32

Item = TypeVar("Item")

Many = Annotated[list[Item], Field(fail_fast=True)]
"""A list that is refused at its first bad item: a body has room for millions of them."""

_Empty = Annotated[list[Any], Field(max_length=0)]

NotSupported = Annotated[_Empty | None, Accepts("null, as it is not supported")]
"""A field of OpenAI's that would change the answer in a way that we cannot."""

Ignored = Any
"""A field of OpenAI's that changes nothing in the answer."""
