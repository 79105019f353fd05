"""Hugging Face's directory format: all files beside the weights."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ops.models.shape import Shape
from ops.models.tokens import BOS, END, PAD, tokenizer_config


def write_config(folder: Path, shape: Shape, tokenizer: Tokenizer, dtype: str) -> None:
    """Write configuration, tokenizer and chat template of a model into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(END),
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    write_json(folder / "config.json", {**shape.config(), **ids, "torch_dtype": dtype})
    write_json(folder / "generation_config.json", ids)
    write_json(folder / "tokenizer_config.json", tokenizer_config(shape.max_position))
    write_json(
        folder / "special_tokens_map.json",
        {"bos_token": BOS, "eos_token": END, "pad_token": PAD},
    )
    tokenizer.save(str(folder / "tokenizer.json"))


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write one file of configuration."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
