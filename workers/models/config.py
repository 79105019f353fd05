"""What a model is made of."""

from dataclasses import dataclass
from pathlib import Path

import torch

from workers.layers.rope_scaling import RopeScaling
from workers.models.architecture import Architecture
from workers.models.errors import UnsupportedModelError
from workers.models.formats.format import QuantizedFormat
from workers.models.formats.registry import parse_quantization
from workers.models.raw_config import RawConfig
from workers.models.registry import ARCHITECTURES
from workers.models.rope_config import parse_rope, stretched_length

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A decoder-only model's shape and numerics, read from a Hugging Face folder."""

    architecture: str
    """The class that transformers would load, such as LlamaForCausalLM."""
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeScaling
    layer: Architecture
    tie_word_embeddings: bool
    max_position_embeddings: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    """Tokens that end a sequence; generation_config.json has precedence."""
    dtype: torch.dtype
    """As the weights are stored, or, where they are quantized, what they stand for."""
    quantized: QuantizedFormat | None
    """How the checkpoint stores its quantized weights, if it does."""

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Each layer's sliding window in tokens; None sees everything."""
        return self.layer.windows

    @property
    def has_dense_layers(self) -> bool:
        """Whether any layer has a feed-forward part without experts."""
        return self.layer.experts is None or not all(self.layer.experts.sparse_layers)

    @property
    def max_sequence_len(self) -> int:
        """Tokens of the longest sequence, prompt and output together."""
        return stretched_length(self.rope, self.max_position_embeddings)

    @classmethod
    def read(cls, folder: Path) -> "ModelConfig":
        """Read `config.json` and, where there is one, `generation_config.json`.

        Raises UnsupportedModelError for a model that cannot be served, CheckpointError if a
        file cannot be read.
        """
        raw = RawConfig.read(folder / "config.json")
        generation_file = folder / "generation_config.json"
        generation = RawConfig.read(generation_file) if generation_file.exists() else RawConfig({})
        return cls.parse(raw, generation)

    @classmethod
    def parse(cls, raw: RawConfig, generation: RawConfig) -> "ModelConfig":
        """Build from the fields of the two files; raises UnsupportedModelError."""
        architecture = _architecture(raw)
        _refuse_unsupported(raw, architecture)
        num_heads = raw.integer("num_attention_heads")
        hidden_size = raw.integer("hidden_size")
        config = cls(
            architecture=architecture,
            hidden_size=hidden_size,
            num_layers=raw.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=raw.integer("num_key_value_heads", num_heads),
            head_dim=raw.integer("head_dim", hidden_size // num_heads),
            intermediate_size=raw.integer("intermediate_size"),
            vocab_size=raw.integer("vocab_size"),
            rms_norm_eps=raw.number("rms_norm_eps", 1e-6),
            rope=parse_rope(raw),
            layer=ARCHITECTURES.get(architecture)(raw),
            tie_word_embeddings=raw.flag("tie_word_embeddings", False),
            max_position_embeddings=raw.integer("max_position_embeddings"),
            bos_token_id=_first(generation, raw, "bos_token_id"),
            eos_token_ids=generation.integers("eos_token_id") or raw.integers("eos_token_id"),
            dtype=_dtype(raw),
            quantized=parse_quantization(raw),
        )
        _check_heads(config)
        return config


def _architecture(raw: RawConfig) -> str:
    names = raw.texts("architectures")
    for name in names:
        if name in ARCHITECTURES.names:
            return name
    known = ", ".join(ARCHITECTURES.names)
    raise UnsupportedModelError(f"unsupported architecture {names}; supported: {known}")


def _refuse_unsupported(raw: RawConfig, architecture: str) -> None:
    activation = raw.text("hidden_act", "silu")
    if activation != "silu":
        raise UnsupportedModelError(
            f"{architecture}: hidden_act {activation!r} is not supported; supported: silu"
        )


def _check_heads(config: ModelConfig) -> None:
    if config.num_heads % config.num_kv_heads or config.head_dim % 2:
        raise UnsupportedModelError(
            f"{config.architecture}: {config.num_heads} heads of {config.head_dim} elements cannot "
            f"share {config.num_kv_heads} key/value heads"
        )


def _first(generation: RawConfig, raw: RawConfig, name: str) -> int | None:
    values = generation.integers(name) or raw.integers(name)
    return values[0] if values else None


def _dtype(raw: RawConfig) -> torch.dtype:
    name = raw.text("dtype", raw.text("torch_dtype", "float32"))
    if name not in DTYPES:
        raise UnsupportedModelError(f"unsupported dtype {name!r}; supported: {', '.join(DTYPES)}")
    return DTYPES[name]
