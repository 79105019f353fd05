"""Small models that engines of several ranks are tried with."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cluster.settings import EngineSettings
from tests.golden.models import CASES, save_random

BLOCK = 8


def save_case(case_id: str, folder: Path) -> Path:
    """A model of that case in `folder`, which is returned."""
    (case,) = [case for case in CASES if case.id == case_id]
    save_random(case, folder)
    Tokenizer(WordLevel({"a": 0})).save(str(folder / "tokenizer.json"))
    return folder


def engine_settings(**changes: Any) -> EngineSettings:
    fields = {
        "dtype": "float32",
        "block_size": BLOCK,
        "num_threads": 1,
        "kv_cache_bytes": 2**22,
        "max_num_batched_tokens": 32,
    }
    return EngineSettings.model_validate(fields | changes)
