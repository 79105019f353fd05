"""Whether a model can be divided as a layout says."""

from collections.abc import Iterator

from workers.models.config import ModelConfig
from workers.models.errors import UnsupportedLayoutError
from workers.parallel.layout import ParallelLayout


def check_layout(config: ModelConfig, layout: ParallelLayout) -> None:
    """Raises UnsupportedLayoutError naming the size that does not fit, and those that would."""
    if layout.pipeline > config.num_layers:
        raise UnsupportedLayoutError(
            f"engine.parallel.pipeline: got {layout.pipeline}, expected at most "
            f"{config.num_layers}, the model's layers"
        )
    _check_experts(config, layout)
    size = layout.dense_size
    if misfits := list(_misfits(config, size)):
        fits = [n for n in range(1, config.num_heads + 1) if not any(_misfits(config, n))]
        is_product = layout.expert > 1
        name = "tensor * engine.parallel.expert" if is_product else "tensor"
        raise UnsupportedLayoutError(
            f"engine.parallel.{name}: got {size}, expected one of {_listed(fits)}: {misfits[0]}"
        )


def check_spare_experts(
    config: ModelConfig, layout: ParallelLayout, count: int, *, deterministic: bool
) -> None:
    """Raises UnsupportedLayoutError if ranks cannot have `count` experts beside their own."""
    if count and (config.layer.experts is None or layout.expert == 1):
        raise UnsupportedLayoutError(
            f"engine.spare_experts: got {count}, expected 0 unless engine.parallel.expert is above "
            "1: there is no other rank to take load from"
        )
    if count and deterministic:
        raise UnsupportedLayoutError(
            f"engine.spare_experts: got {count}, expected 0 with engine.deterministic: which copy "
            "of an expert computes a row depends on what else is computed"
        )


def _check_experts(config: ModelConfig, layout: ParallelLayout) -> None:
    experts = config.layer.experts
    if experts is None:
        if layout.expert > 1:
            raise UnsupportedLayoutError(
                f"engine.parallel.expert: got {layout.expert}, expected 1: "
                f"{config.architecture} has no experts"
            )
        return
    if experts.num_experts % layout.expert:
        raise UnsupportedLayoutError(
            f"engine.parallel.expert: got {layout.expert}, expected a divisor of "
            f"{experts.num_experts} experts"
        )
    if experts.intermediate_size % layout.tensor:
        raise UnsupportedLayoutError(
            f"engine.parallel.tensor: got {layout.tensor}, expected a divisor of the experts' "
            f"intermediate size {experts.intermediate_size}"
        )


def _misfits(config: ModelConfig, size: int) -> Iterator[str]:
    """Why the ranks of a dense group cannot be so many."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % size:
        yield f"it must divide the {heads} query heads"
    if kv_heads % size and size % kv_heads:
        yield f"it must divide the {kv_heads} key/value heads, or be a multiple of them"
    for inner in _dense_inner_sizes(config):
        if inner % size:
            yield f"it must divide the intermediate size {inner}"
    if -(-config.vocab_size // size) * (size - 1) >= config.vocab_size:
        yield f"it would leave a rank without a part of the {config.vocab_size} tokens"


def _dense_inner_sizes(config: ModelConfig) -> Iterator[int]:
    experts = config.layer.experts
    if config.has_dense_layers:
        yield config.intermediate_size
    if experts is not None and experts.shared_intermediate_size:
        yield experts.shared_intermediate_size


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
