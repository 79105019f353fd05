"""CTranslate2, whose batches are static."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2

from ops.bench.peers.child import main


class CTranslate2:
    """Options: `model`, a folder made by `convert`, and `threads`."""

    def __init__(self, options: dict[str, Any]) -> None:
        folder = Path(options["model"])
        self._generator = ctranslate2.Generator(
            str(folder), device="cpu", inter_threads=1, intra_threads=options["threads"]
        )
        # It takes tokens as texts only.
        self._texts = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))

    def generate(
        self, prompts: list[list[int]], output_tokens: int, on_token: Callable[[], None]
    ) -> list[list[int]]:
        """As the protocol says."""

        def told(_: object) -> bool:
            on_token()
            return False  # whether to stop

        results = self._generator.generate_batch(
            [[self._texts[token_id] for token_id in prompt] for prompt in prompts],
            sampling_topk=1,
            min_length=output_tokens,
            max_length=output_tokens,
            include_prompt_in_result=False,
            callback=told if len(prompts) == 1 else None,
        )
        return [list(result.sequences_ids[0]) for result in results]


def convert(options: dict[str, Any]) -> None:
    """Write `model` with weights in `format` to `into`."""
    # Here, because it brings torch and transformers, which generating does without.
    from ctranslate2.converters import TransformersConverter

    converter = TransformersConverter(options["model"])
    converter.convert(options["into"], quantization=options["format"])


if __name__ == "__main__":
    main(CTranslate2, convert)
