"""Ranks that share out experts compute together what one rank computes alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, PretrainedConfig, Qwen2MoeConfig, Qwen3MoeConfig

from tests.workers.models.rank_driver import CHUNKS, Fed, RankDriver, assert_same, feed
from tests.workers.parallel.thread_group import make_ranks, run_ranks
from workers.kernels.library import load_library
from workers.layers.expert_exchange import AllRows, Dispatch
from workers.layers.moe import SparseMlp
from workers.models.causal_lm import CausalLM
from workers.models.loader import load_model
from workers.models.recorder import Recorder
from workers.parallel.group import Ranks, solo_ranks
from workers.parallel.layout import ParallelLayout
from workers.quantization.plan import QuantizationPlan

QWEN = {"moe_intermediate_size": 64, "norm_topk_prob": True, "mlp_only_layers": [1]}
KINDS: dict[str, tuple[Callable[..., PretrainedConfig], dict[str, Any]]] = {
    "mixtral": (MixtralConfig, {"num_local_experts": 8, "num_experts_per_tok": 1}),
    "qwen3-moe": (Qwen3MoeConfig, QWEN | {"num_experts": 16, "num_experts_per_tok": 3}),
    "qwen2-moe": (
        Qwen2MoeConfig,
        QWEN | {"num_experts": 8, "num_experts_per_tok": 1, "shared_expert_intermediate_size": 128},
    ),
}
NUM_EXPERTS = {"mixtral": 8, "qwen3-moe": 16, "qwen2-moe": 8}
LAYOUTS = {
    "ep2": ParallelLayout(expert=2),
    "ep4": ParallelLayout(expert=4),  # more than two ranks for each of a row's experts
    "tp2-ep2": ParallelLayout(tensor=2, expert=2),
    "tp2-ep4": ParallelLayout(tensor=2, expert=4),
    "ep2-pp2": ParallelLayout(expert=2, pipeline=2),
}
NUM_TOKENS = sum(map(sum, CHUNKS))


def sparse_layers(model: CausalLM) -> list[SparseMlp]:
    return [layer.mlp for layer in model.layers if isinstance(layer.mlp, SparseMlp)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_compute_what_one_computes_alone(
    kind: str, layout: str, model_dir: Callable[[str], Path], alone: Callable[[str], Fed]
) -> None:
    assert_same(feed(model_dir(kind), LAYOUTS[layout]), alone(kind))


@pytest.mark.parametrize("layout", ["ep4", "tp2-ep2"])
def test_without_kernels(
    layout: str,
    model_dir: Callable[[str], Path],
    alone: Callable[[str], Fed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = alone("mixtral")
    monkeypatch.setattr("workers.kernels.library._machine_library", lambda: None)
    assert_same(feed(model_dir("mixtral"), LAYOUTS[layout]), expected)


@pytest.mark.parametrize(
    ("kind", "layout", "exchange"),
    [
        ("mixtral", "ep2", AllRows),
        ("mixtral", "ep4", Dispatch),
        ("mixtral", "tp2-ep4", AllRows),  # tensor ranks would have to sum
        ("qwen3-moe", "ep4", AllRows),  # three experts for a row
        ("qwen2-moe", "ep4", AllRows),  # a shared expert
    ],
)
def test_rows_travel_the_way_that_moves_fewer_bytes(
    kind: str, layout: str, exchange: type, model_dir: Callable[[str], Path]
) -> None:
    ranks = make_ranks(LAYOUTS[layout])[1]
    model = load_model(model_dir(kind), None, "cpu", "auto", ranks=ranks)
    assert {type(mlp.exchange) for mlp in sparse_layers(model)} == {exchange}


@pytest.mark.parametrize("layout", ["alone", *LAYOUTS])
@pytest.mark.parametrize("kind", KINDS)
def test_load_counts_each_row_that_is_not_padding(
    kind: str, layout: str, model_dir: Callable[[str], Path]
) -> None:
    """For each of its experts, in each sparse layer; every rank of a stage counts alike."""

    def body(ranks: Ranks) -> torch.Tensor:
        model = load_model(model_dir(kind), torch.float32, "cpu", "auto", ranks=ranks)
        RankDriver(model, ranks).feed()
        assert model.expert_load is not None
        return model.expert_load.rows

    of = LAYOUTS.get(layout, ParallelLayout())
    rows = run_ranks(of, body)
    stages = [rows[of.rank(stage, 0, 0, 0)] for stage in range(of.pipeline)]
    for rank, found in enumerate(rows):
        assert torch.equal(found, stages[of.place(rank).stage])
    per_token = KINDS[kind][1]["num_experts_per_tok"]
    expected = [0 if kind != "mixtral" and layer == 1 else NUM_TOKENS for layer in range(3)]
    assert torch.cat(stages).sum(dim=1).tolist() == [per_token * count for count in expected]
    assert torch.cat(stages).shape == (3, NUM_EXPERTS[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_recorded(
    kind: str, model_dir: Callable[[str], Path], alone: Callable[[str], Fed]
) -> None:
    """Though rows go to other experts each time."""
    if load_library() is None:
        pytest.skip("needs the CPU kernels")
    ranks = solo_ranks()
    model = load_model(model_dir(kind), torch.float32, "cpu", "auto")
    driver = RankDriver(model, ranks, Recorder(model.library))
    fed = driver.feed()
    assert model.is_native
    assert fed is not None
    assert_same(fed, alone(kind))
    assert driver.num_runs == len(set(map(sum, CHUNKS)))


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("layout", ["ep4", "tp2-ep2"])
@pytest.mark.parametrize("kind", ["qwen3-moe", "qwen2-moe"])
def test_quantized_shares_are_as_close_to_the_plain_model_as_the_whole(
    kind: str,
    layout: str,
    scheme: Any,
    model_dir: Callable[[str], Path],
    alone: Callable[[str], Fed],
) -> None:
    """In the best quarter of rows: quantizing sends some of the others to other experts."""
    plain, plan = alone(kind).hidden, QuantizationPlan(scheme)

    def error(of: ParallelLayout | None) -> float:
        hidden = feed(model_dir(kind), of, plan=plan).hidden
        return float(((hidden - plain).norm(dim=1) / plain.norm(dim=1)).quantile(0.25))

    assert 0 < error(LAYOUTS[layout]) < 1.3 * error(None) < 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_shares_add_up_to_the_model(kind: str, model_dir: Callable[[str], Path]) -> None:
    """But for what each rank of a dense group holds: norms, routers, shared gates."""
    whole = load_model(model_dir(kind), None, "cpu", "sdpa").weight_bytes
    ranks = make_ranks(LAYOUTS["tp2-ep2"])
    shares = [load_model(model_dir(kind), None, "cpu", "sdpa", ranks=one) for one in ranks]
    num_sparse = len(sparse_layers(shares[0]))
    copied = 7 * 96 + (3 * 2 * 16 if kind == "qwen3-moe" else 0)
    copied += num_sparse * 96 * (NUM_EXPERTS[kind] + (1 if kind == "qwen2-moe" else 0))
    kv_heads = 3 * 2 * 2 * 16 * (96 + (1 if kind == "qwen2-moe" else 0))  # held by two ranks each
    expected = whole + 4 * (3 * copied + kv_heads)
    assert sum(share.weight_bytes for share in shares) == expected
