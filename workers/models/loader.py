"""From a folder in Hugging Face format to a model that runs."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from workers.kernels.library import Library, load_library
from workers.kernels.row_kernels import row_kernels
from workers.layers.attention import AttentionBackend, AttentionShape
from workers.layers.attention_registry import attention_backend
from workers.layers.expert_load import ExpertLoad
from workers.layers.linear import Linear, multiplies_by_onednn
from workers.layers.rotary import RotaryEmbedding
from workers.models.causal_lm import CausalLM
from workers.models.checkpoint import Checkpoint
from workers.models.config import ModelConfig
from workers.models.errors import CheckpointError
from workers.models.expert_rebalancer import expert_rebalancer
from workers.models.fit import check_layout, check_spare_experts
from workers.models.layer_builder import LayerBuilder
from workers.models.moe_weights import SparseLayers
from workers.models.packed_cache import PackedCache, packed_cache
from workers.models.rank_shape import RankShape, dense_shard, rank_shape
from workers.models.weights import Outputs, Weights
from workers.parallel.group import Ranks, solo_ranks
from workers.quantization.plan import HEAD, QuantizationPlan

_EMBEDDING, _FINAL_NORM = "model.embed_tokens.weight", "model.norm.weight"


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
    ranks: Ranks | None = None,
    spare_experts: int = 0,
) -> CausalLM:
    """Load config.json and, from the safetensors beside it, one rank's share.

    Weights are mapped, and read one layer at a time: apart from what is kept, there is never
    more in memory than one layer's tensors.

    Args:
        path: The folder.
        dtype: To convert to; None keeps the configuration's, but for float16 on a CPU, of which
            bfloat16 is made.
        device: Where the model will run.
        attention: A name in ATTENTION_BACKENDS, or auto.
        progress: Told (layers loaded, this rank's layers in all) after each layer.
        plan: How to quantize linear layers that are not stored quantized; None leaves them.
        packed_cache_bytes: Disk for packed weights, for the next start; 0 keeps none.
        deterministic: Whether a token's logits must not depend on what is computed beside it.
        ranks: This rank among those that the model is divided among; None for it alone.
        spare_experts: Experts that each rank holds beside its own, copies of the busiest.

    Raises:
        UnsupportedLayoutError: The model cannot be divided so.
        UnsupportedModelError: The model asks for something that is not implemented.
        CheckpointError: A file or tensor is missing, unexpected or of the wrong shape.
        UnknownChoiceError: There is no such attention backend.
        ValueError: The plan or the attention backend does not fit the model.
    """
    config, ranks = ModelConfig.read(path), ranks or solo_ranks()
    check_layout(config, ranks.layout)
    check_spare_experts(config, ranks.layout, spare_experts, deterministic=deterministic)
    plan = plan or QuantizationPlan()
    plan.check_overrides(_linear_modules(config))
    device = torch.device(device)
    dtype = dtype or _served_dtype(config, device)
    shape = rank_shape(config, ranks.layout, ranks.place)
    heads = AttentionShape(shape.num_heads, shape.num_kv_heads, shape.head_dim)
    backend = attention_backend(
        attention, heads, dtype, device, deterministic=deterministic, sequence=ranks.sequence
    )
    library = load_library() if device.type == "cpu" else None
    with Checkpoint(path) as checkpoint:
        weights = Weights(
            checkpoint,
            dense_shard(ranks.layout, ranks.place),
            dtype,
            device,
            config.quantized,
            plan,
            deterministic=deterministic,
        )
        if library is not None and packed_cache_bytes:
            weights.cache = _cache_of(path, weights, ranks, spare_experts, packed_cache_bytes)
        sparse = _sparse_layers(weights, config, shape, ranks, spare_experts)
        model = _model(path, weights, config, shape, ranks, backend, library, sparse, progress)
        if weights.cache is None or not weights.cache.is_found:
            _pass_over_other_stages(checkpoint, config, shape, ranks)
            _refuse_leftovers(checkpoint, config)
    if weights.cache is not None:
        weights.cache.save()
    return model


def _model(
    path: Path,
    weights: Weights,
    config: ModelConfig,
    shape: RankShape,
    ranks: Ranks,
    backend: AttentionBackend,
    library: Library | None,
    sparse: SparseLayers | None,
    progress: Callable[[int, int], None] | None,
) -> CausalLM:
    rows = row_kernels(library)
    embedding = _embedding(weights, config, shape, ranks)
    builder, layers = LayerBuilder(weights, config, shape, ranks, rows, sparse), []
    for index in shape.layers:
        layers.append(builder.layer(index))
        if progress is not None:
            progress(len(layers), shape.num_layers)
    dtype, device, is_last = weights.dtype, weights.device, ranks.is_last_stage
    return CausalLM(
        config=config,
        shape=shape,
        dtype=dtype,
        device=device,
        embedding=embedding if ranks.is_first_stage else None,
        layers=layers,
        final_norm=weights.tensor(_FINAL_NORM, (config.hidden_size,)) if is_last else None,
        head=_head(weights, config, shape, embedding) if is_last else None,
        rotary=RotaryEmbedding(
            config.rope, config.head_dim, config.max_sequence_len, dtype, device
        ),
        backend=backend,
        rows=rows,
        library=library,
        weight_bytes=weights.num_bytes,
        dense=ranks.dense,
        expert_load=None if sparse is None else sparse.load,
        rebalancer=expert_rebalancer(path, sparse, layers, shape.layers.start)
        if sparse is not None and sparse.num_spare
        else None,
    )


def _sparse_layers(
    weights: Weights, config: ModelConfig, shape: RankShape, ranks: Ranks, num_spare: int
) -> SparseLayers | None:
    experts = config.layer.experts
    if experts is None:
        return None
    load = ExpertLoad.allocate(shape.num_layers, experts.num_experts, ranks.place.sequence)
    return SparseLayers(weights, experts, config.hidden_size, ranks, load, num_spare)


def _embedding(
    weights: Weights, config: ModelConfig, shape: RankShape, ranks: Ranks
) -> torch.Tensor | None:
    """This rank's rows, where it embeds or has a head that is tied to them."""
    if ranks.is_first_stage or (ranks.is_last_stage and config.tie_word_embeddings):
        return weights.rows(_EMBEDDING, (config.vocab_size, config.hidden_size), shape.vocab)
    return None


def _head(
    weights: Weights, config: ModelConfig, shape: RankShape, embedding: torch.Tensor | None
) -> Linear:
    if config.tie_word_embeddings and embedding is not None:
        return weights.tied_head(embedding)
    return weights.head(Outputs(config.vocab_size, shape.vocab), config.hidden_size)


def _cache_of(
    path: Path, weights: Weights, ranks: Ranks, spare_experts: int, max_bytes: int
) -> PackedCache | None:
    layout, place = ranks.layout, ranks.place
    served_as = {
        "dtype": str(weights.dtype),
        "plan": asdict(weights.plan),
        # Ranks that differ in their part of the sequence only hold the same weights.
        "layout": (layout.tensor, layout.pipeline, layout.expert),
        "place": (place.tensor, place.stage, place.expert),
        "spare_experts": spare_experts,
        "onednn": multiplies_by_onednn(weights.dtype, deterministic=weights.deterministic),
    }
    return packed_cache(path, weights.checkpoint.files, served_as, max_bytes)


def _served_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """Processors that multiply float16 quickly are few."""
    if device.type == "cpu" and config.dtype == torch.float16:
        return torch.bfloat16
    return config.dtype


def _linear_modules(config: ModelConfig) -> list[str]:
    layers = [
        f"model.layers.{index}.{name}"
        for index in range(config.num_layers)
        for name in (*(f"self_attn.{name}_proj" for name in "qkvo"), *_mlp_modules(config, index))
    ]
    return [*layers, HEAD]


def _mlp_modules(config: ModelConfig, index: int) -> list[str]:
    experts = config.layer.experts
    if experts is not None and experts.sparse_layers[index]:
        return experts.linear_modules
    return [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def _pass_over_other_stages(
    checkpoint: Checkpoint, config: ModelConfig, shape: RankShape, ranks: Ranks
) -> None:
    for index in range(config.num_layers):
        if index not in shape.layers:
            checkpoint.pass_over(f"model.layers.{index}")
    if not ranks.is_first_stage:
        checkpoint.pass_over(_EMBEDDING)
    if not ranks.is_last_stage:
        checkpoint.pass_over(_FINAL_NORM)
        checkpoint.pass_over(HEAD)


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
