"""From a folder in Hugging Face format to a model that runs."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from workers.kernels.library import Library, load_library
from workers.kernels.row_kernels import RowKernels, row_kernels
from workers.layers.attention import AttentionBackend, AttentionShape, HeadNorm
from workers.layers.attention_registry import attention_backend
from workers.layers.decoder_layer import DecoderLayer
from workers.layers.linear import multiplies_by_onednn
from workers.layers.mlp import GatedMlp
from workers.layers.rotary import RotaryEmbedding
from workers.layers.self_attention import SelfAttention
from workers.layers.sharding import Shard
from workers.models.causal_lm import CausalLM
from workers.models.checkpoint import Checkpoint
from workers.models.config import ModelConfig
from workers.models.errors import CheckpointError
from workers.models.packed_cache import PackedCache, packed_cache
from workers.models.weights import Weights
from workers.quantization.plan import HEAD, QuantizationPlan


def load_model(
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device | str,
    attention: str,
    progress: Callable[[int, int], None] | None = None,
    plan: QuantizationPlan | None = None,
    packed_cache_bytes: int = 0,
    *,
    deterministic: bool = False,
) -> CausalLM:
    """Load config.json and the safetensors beside it.

    Weights are mapped, and read one layer at a time: apart from what is kept, there is never
    more in memory than one layer's tensors.

    Args:
        path: The folder.
        dtype: To convert to; None keeps the configuration's, but for float16 on a CPU, of which
            bfloat16 is made.
        device: Where the model will run.
        attention: A name in ATTENTION_BACKENDS, or auto.
        progress: Told (layers loaded, layers in all) after each layer.
        plan: How to quantize linear layers that are not stored quantized; None leaves them.
        packed_cache_bytes: Disk for packed weights, for the next start; 0 keeps none.
        deterministic: Whether a token's logits must not depend on what is computed beside it.

    Raises:
        UnsupportedModelError: The model asks for something that is not implemented.
        CheckpointError: A file or tensor is missing, unexpected or of the wrong shape.
        UnknownChoiceError: There is no such attention backend.
        ValueError: The plan or the attention backend does not fit the model.
    """
    config = ModelConfig.read(path)
    plan = plan or QuantizationPlan()
    plan.check_overrides(_linear_modules(config))
    device = torch.device(device)
    dtype = dtype or _served_dtype(config, device)
    shape = AttentionShape(config.num_heads, config.num_kv_heads, config.head_dim)
    backend = attention_backend(attention, shape, dtype, device, deterministic=deterministic)
    library = load_library() if device.type == "cpu" else None
    with Checkpoint(path) as checkpoint:
        weights = Weights(
            checkpoint, Shard(), dtype, device, config.quantized, plan, deterministic=deterministic
        )
        if library is not None and packed_cache_bytes:
            weights.cache = _cache_of(path, weights, packed_cache_bytes)
        model = _model(weights, config, backend, library, progress)
        if weights.cache is None or not weights.cache.is_found:
            _refuse_leftovers(checkpoint, config)
    if weights.cache is not None:
        weights.cache.save()
    return model


def _model(
    weights: Weights,
    config: ModelConfig,
    backend: AttentionBackend,
    library: Library | None,
    progress: Callable[[int, int], None] | None,
) -> CausalLM:
    rows = row_kernels(library)
    embedding = weights.tensor("model.embed_tokens.weight", (config.vocab_size, config.hidden_size))
    layers = []
    for index in range(config.num_layers):
        layers.append(_decoder_layer(weights, config, index, rows))
        if progress is not None:
            progress(index + 1, config.num_layers)
    dtype, device = weights.dtype, weights.device
    return CausalLM(
        config=config,
        dtype=dtype,
        device=device,
        embedding=embedding,
        layers=layers,
        final_norm=weights.tensor("model.norm.weight", (config.hidden_size,)),
        head=weights.head(embedding, tied=config.tie_word_embeddings),
        rotary=RotaryEmbedding(
            config.rope, config.head_dim, config.max_sequence_len, dtype, device
        ),
        backend=backend,
        rows=rows,
        library=library,
        weight_bytes=weights.num_bytes,
    )


def _cache_of(path: Path, weights: Weights, max_bytes: int) -> PackedCache | None:
    served_as = {
        "dtype": str(weights.dtype),
        "plan": asdict(weights.plan),
        "shard": asdict(weights.shard),
        "onednn": multiplies_by_onednn(weights.dtype, deterministic=weights.deterministic),
    }
    return packed_cache(path, weights.checkpoint.files, served_as, max_bytes)


def _served_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Processors that multiply float16 quickly are few."""
    if device.type == "cpu" and config.dtype == torch.float16:
        return torch.bfloat16
    return config.dtype


def _linear_modules(config: ModelConfig) -> list[str]:
    names = [f"self_attn.{name}_proj" for name in "qkvo"]
    names += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    layers = [
        f"model.layers.{index}.{name}" for index in range(config.num_layers) for name in names
    ]
    return [*layers, HEAD]


def _decoder_layer(
    weights: Weights, config: ModelConfig, index: int, rows: RowKernels
) -> DecoderLayer:
    prefix = f"model.layers.{index}"
    hidden, inner = config.hidden_size, config.intermediate_size
    bias = config.layer.mlp_bias
    return DecoderLayer(
        input_norm=weights.tensor(f"{prefix}.input_layernorm.weight", (hidden,)),
        attention=_attention(weights, config, index),
        post_attention_norm=weights.tensor(f"{prefix}.post_attention_layernorm.weight", (hidden,)),
        mlp=GatedMlp(
            gated=weights.gated(
                f"{prefix}.mlp", {"gate_proj": inner, "up_proj": inner}, hidden, bias=bias
            ),
            down=weights.row_parallel(f"{prefix}.mlp.down_proj", inner, hidden, bias=bias),
        ),
        eps=config.rms_norm_eps,
        rows=rows,
    )


def _attention(weights: Weights, config: ModelConfig, index: int) -> SelfAttention:
    prefix = f"model.layers.{index}.self_attn"
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return SelfAttention(
        qkv=weights.column_parallel(
            prefix,
            {"q_proj": queries, "k_proj": keys, "v_proj": keys},
            config.hidden_size,
            bias=config.layer.qkv_bias,
        ),
        output=weights.row_parallel(
            f"{prefix}.o_proj", queries, config.hidden_size, bias=config.layer.output_bias
        ),
        head_norm=_head_norm(weights, config, prefix) if config.layer.qk_norm else None,
        num_heads=weights.shard.count(config.num_heads),
        num_kv_heads=weights.shard.count(config.num_kv_heads),
        head_dim=config.head_dim,
        window=config.windows[index],
    )


def _head_norm(weights: Weights, config: ModelConfig, prefix: str) -> HeadNorm:
    query = weights.tensor(f"{prefix}.q_norm.weight", (config.head_dim,))
    key = weights.tensor(f"{prefix}.k_norm.weight", (config.head_dim,))
    num_queries = weights.shard.count(config.num_heads)
    num_keys = weights.shard.count(config.num_kv_heads)
    rows = torch.cat((query.expand(num_queries, -1), key.expand(num_keys, -1)))
    return HeadNorm(rows, config.rms_norm_eps)


def _refuse_leftovers(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Old files carry rotary tables, and tied ones may carry the head a second time.

    Quantizers have given biases of zeros to modules without a bias.
    """
    leftovers = [name for name in checkpoint.unread if not name.endswith("rotary_emb.inv_freq")]
    if config.quantized is not None:
        leftovers = [name for name in leftovers if not checkpoint.is_zero_bias(name)]
    if config.tie_word_embeddings:
        leftovers = [name for name in leftovers if name != "lm_head.weight"]
    if leftovers:
        raise CheckpointError(f"unexpected tensors for {config.architecture}: {leftovers}")
