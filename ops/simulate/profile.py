"""How fast an engine is, and how much it holds: all that a simulation knows of a model."""

from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)


class ProfileError(Exception):
    """A file that is no profile."""


class EngineProfile(BaseModel):
    """An engine of one replica. Between what was measured lies a straight line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Of what was measured."""
    prefill_tokens_per_s: dict[PositiveInt, PositiveFloat]
    """By length of a prompt, computed alone from its first token to its last."""
    decode_step_ms: dict[PositiveInt, PositiveFloat]
    """By sequences in a step, each of which gets one token."""
    num_blocks: PositiveInt
    """Of the KV cache."""
    block_size: PositiveInt = 16
    """In tokens."""
    max_num_seqs: PositiveInt = 256
    max_num_batched_tokens: PositiveInt = 2048

    @model_validator(mode="after")
    def _has_measures(self) -> Self:
        if not self.prefill_tokens_per_s or not self.decode_step_ms:
            raise ValueError("prefill_tokens_per_s and decode_step_ms: expected one entry or more")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """The profile in a JSON file. Raises ProfileError, OSError."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "the file"
            raise ProfileError(f"{path}: {field}: {first['msg']}") from error

    def save(self, path: Path) -> None:
        """Write it as JSON. Raises OSError."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def prefill_s(self, start: int, end: int) -> float:
        """To compute a prompt's tokens from `start` up to `end`, alone."""
        return self._prompt_s(end) - self._prompt_s(start)

    def decode_s(self, sequences: int) -> float:
        """One step of so many sequences, at least one."""
        batches, ms = self._decode_points
        if sequences > batches[-1]:
            return ms[-1] * 1e-3 * sequences / batches[-1]
        return float(np.interp(sequences, batches, ms)) * 1e-3

    def step_s(self, prompts_s: float, decodes: int) -> float:
        """One step of chunks of prompts that take so long alone, and of so many decodes.

        A step of prompts alone takes no less than one decode: it reads the weights, too.
        """
        if decodes:
            return prompts_s + self.decode_s(decodes)
        return max(prompts_s, self.decode_s(1))

    def _prompt_s(self, length: int) -> float:
        lengths, seconds = self._prefill_points
        if length > lengths[-1]:
            return seconds[-1] * length / lengths[-1]
        return float(np.interp(length, lengths, seconds))

    @cached_property
    def _prefill_points(self) -> tuple[list[int], list[float]]:
        lengths = sorted(self.prefill_tokens_per_s)
        seconds = [length / self.prefill_tokens_per_s[length] for length in lengths]
        return [0, *lengths], [0.0, *np.maximum.accumulate(seconds).tolist()]

    @cached_property
    def _decode_points(self) -> tuple[list[int], list[float]]:
        batches = sorted(self.decode_step_ms)
        return batches, np.maximum.accumulate([self.decode_step_ms[b] for b in batches]).tolist()


DEFAULT = EngineProfile(
    name="default",
    prefill_tokens_per_s={128: 8_000, 512: 16_000, 2048: 20_000, 8192: 18_000, 32_768: 13_000},
    decode_step_ms={1: 8.0, 8: 9.0, 32: 11.0, 64: 14.0, 128: 20.0, 256: 32.0},
    num_blocks=16_384,
)
"""Round figures, made up, of the size of an 8B model on a large GPU."""
