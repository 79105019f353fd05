"""What the engine's tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from cluster.settings import EngineSettings
from tests.golden.models import CASES, save_random
from workers.engine.llm import LLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_random(CASES[0], path)
    Tokenizer(WordLevel({"a": 0})).save(str(path / "tokenizer.json"))
    return path


@pytest.fixture
def make_llm(folder: Path) -> Callable[..., LLM]:
    def make(**changes: Any) -> LLM:
        settings = {"dtype": "float32", "kv_cache_bytes": 2**23, "num_threads": 1, **changes}
        return LLM(folder, EngineSettings.model_validate(settings))

    return make
