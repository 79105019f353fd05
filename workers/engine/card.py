"""The model card, read from a model's directory."""

import json
from hashlib import blake2b
from pathlib import Path
from typing import Any

from cluster.model_card import ModelCard
from cluster.settings import EngineSettings
from workers.models.config import ModelConfig

_PROBES = 64
_PROBE_BYTES = 1024
_PRECISION = {
    "dtype",
    "quantization",
    "quantization_group_size",
    "quantization_overrides",
    "kv_cache_dtype",
}
"""The settings that change what a model answers."""


def model_card(
    model_dir: Path, config: ModelConfig, settings: EngineSettings, max_model_len: int
) -> ModelCard:
    """The card under the directory's name. Raises FileNotFoundError without a tokenizer.json."""
    tokenizer_json = (model_dir / "tokenizer.json").read_text(encoding="utf-8")
    tokenizer = _read_json(model_dir / "tokenizer_config.json")
    return ModelCard(
        name=model_dir.name,
        fingerprint=_fingerprint(model_dir),
        precision=settings.model_dump_json(include=_PRECISION),
        max_model_len=max_model_len,
        vocab_size=config.vocab_size,
        block_size=settings.block_size,
        eos_token_ids=tuple(config.eos_token_ids),
        tokenizer_json=tokenizer_json,
        chat_template=_chat_template(model_dir, tokenizer),
        special_tokens=_special_tokens(tokenizer),
    )


def _chat_template(model_dir: Path, tokenizer: dict[str, Any]) -> str | None:
    """From chat_template.jinja, else from tokenizer_config.json, where it may be one of several."""
    file = model_dir / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = tokenizer.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(tokenizer: dict[str, Any]) -> dict[str, str]:
    """bos_token and its like, which older files write as objects."""
    found = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = tokenizer.get(name)
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str):
            found[name] = content
    return found


def _fingerprint(model_dir: Path) -> str:
    """Hash over configuration, tokenizer, and the weights' headers and spread samples.

    Samples, because fine-tuned models share their headers, and not everything, because models
    are large.
    """
    digest = blake2b(digest_size=16)
    for name in ("config.json", "tokenizer.json"):
        digest.update((model_dir / name).read_bytes())
    for file in sorted(model_dir.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            header_size = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(header_size))
            for probe in range(_PROBES):
                stream.seek(8 + header_size + (size - 8 - header_size) * probe // _PROBES)
                digest.update(stream.read(_PROBE_BYTES))
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
