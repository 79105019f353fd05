"""Which layers each pipeline stage holds."""

from itertools import accumulate, pairwise

from workers.models.config import ModelConfig


def stage_layers(config: ModelConfig, num_stages: int) -> list[range]:
    """Cut the layers into stages so that the largest costs as little as can be.

    A stage costs the weights that it multiplies, those of all experts included: a step reads each
    of them once. To look up embeddings costs nothing; the head is the last stage's. Of cuts whose
    largest stages are equal, a more even one is taken.

    Raises ValueError if there are more stages than layers.
    """
    if not 1 <= num_stages <= config.num_layers:
        raise ValueError(
            f"num_stages: got {num_stages}, expected 1 to {config.num_layers}, the model's layers"
        )
    costs = [_layer_cost(config, index) for index in range(config.num_layers)]
    costs[-1] += config.vocab_size * config.hidden_size
    starts = _starts(costs, num_stages)
    return [range(start, end) for start, end in pairwise([*starts, config.num_layers])]


def _layer_cost(config: ModelConfig, index: int) -> int:
    """Elements of one layer's matrices."""
    heads = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim
    experts, inner = config.layer.experts, config.intermediate_size
    if experts is not None and experts.sparse_layers[index]:
        inner = experts.num_experts * experts.intermediate_size + experts.shared_intermediate_size
    return config.hidden_size * (heads + 3 * inner)


def _starts(costs: list[int], num_stages: int) -> list[int]:
    """First items of `num_stages` consecutive parts, none empty, of least largest sum.

    By dynamic programming over the parts of each prefix; with an equal largest sum, the lesser sum
    of squares wins.
    """
    totals = [0, *accumulate(costs)]
    best = {end: (total, total**2, [0]) for end, total in enumerate(totals) if end}
    for parts in range(2, num_stages + 1):
        longer = {}
        for end in range(parts, len(totals)):
            cuts = []
            for start in range(parts - 1, end):
                largest, squares, starts = best[start]
                last = totals[end] - totals[start]
                cuts.append((max(largest, last), squares + last**2, [*starts, start]))
            longer[end] = min(cuts)
        best = longer
    return best[len(costs)][2]
