"""The experts that a configuration file asks for."""

from workers.models.architecture import ExpertNames, MixtureOfExperts
from workers.models.errors import UnsupportedModelError
from workers.models.raw_config import RawConfig

QWEN_NAMES = ExpertNames(block="mlp", gate="gate_proj", up="up_proj", down="down_proj")


def mixture_of_experts(
    names: ExpertNames,
    *,
    num_experts: int,
    experts_per_token: int,
    intermediate_size: int,
    renormalises: bool,
    sparse_layers: tuple[bool, ...],
    shared_intermediate_size: int = 0,
) -> MixtureOfExperts | None:
    """What MixtureOfExperts says; None where no layer is sparse.

    Raises UnsupportedModelError for a row that would need more experts than there are.
    """
    if not any(sparse_layers):
        return None
    if not 1 <= experts_per_token <= num_experts:
        raise UnsupportedModelError(
            f"configuration field 'num_experts_per_tok' is {experts_per_token}, "
            f"expected 1 to {num_experts}, the number of experts"
        )
    return MixtureOfExperts(
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        intermediate_size=intermediate_size,
        renormalises=renormalises,
        sparse_layers=sparse_layers,
        names=names,
        shared_intermediate_size=shared_intermediate_size,
    )


def qwen_experts(
    raw: RawConfig,
    *,
    num_experts: int,
    experts_per_token: int,
    intermediate_size: int,
    shared_intermediate_size: int = 0,
) -> MixtureOfExperts | None:
    """Qwen's experts; the sizes are those of a file that does not name them.

    Every `decoder_sparse_step`th layer is sparse, but for those in `mlp_only_layers`.

    Raises UnsupportedModelError for fields that contradict each other.
    """
    count = raw.integer("num_experts", raw.integer("num_local_experts", num_experts))
    step, dense = raw.integer("decoder_sparse_step", 1), raw.integers("mlp_only_layers")
    if step < 1:
        raise UnsupportedModelError(
            f"configuration field 'decoder_sparse_step' is {step}, expected at least 1"
        )
    layers = range(raw.integer("num_hidden_layers"))
    return mixture_of_experts(
        QWEN_NAMES,
        num_experts=count,
        experts_per_token=raw.integer("num_experts_per_tok", experts_per_token),
        intermediate_size=raw.integer("moe_intermediate_size", intermediate_size),
        renormalises=raw.flag("norm_topk_prob", False),
        sparse_layers=tuple(
            count > 0 and layer not in dense and (layer + 1) % step == 0 for layer in layers
        ),
        shared_intermediate_size=shared_intermediate_size,
    )
