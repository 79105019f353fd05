"""Ranks that each load their share of a model compute together what one rank computes alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from tests.workers.models.rank_driver import CHUNKS, Fed, RankDriver, assert_same, feed
from tests.workers.parallel.thread_group import make_ranks, run_ranks
from workers.kernels.cpu_collectives import CpuCollectives
from workers.kernels.library import load_library
from workers.models.errors import CheckpointError, UnsupportedModelError
from workers.models.loader import load_model
from workers.models.recorder import Recorder
from workers.parallel.group import Ranks
from workers.parallel.layout import ParallelLayout
from workers.parallel.segment import Segment
from workers.parallel.shared_group import SharedMemoryGroup
from workers.quantization.plan import QuantizationPlan

KINDS: dict[str, tuple[Callable[..., PretrainedConfig], dict[str, Any]]] = {
    "llama-tied": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama-bias": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral-window": (MistralConfig, {"sliding_window": 12}),
    "qwen2": (
        Qwen2Config,
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "qwen3": (Qwen3Config, {}),
}
LAYOUTS = {
    "tp2": ParallelLayout(tensor=2),
    "tp4": ParallelLayout(tensor=4),  # two ranks for each key/value head
    "pp2": ParallelLayout(pipeline=2),
    "pp3": ParallelLayout(pipeline=3),
    "tp2-pp2": ParallelLayout(tensor=2, pipeline=2),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_compute_what_one_computes_alone(
    kind: str, layout: str, model_dir: Callable[[str], Path], alone: Callable[[str], Fed]
) -> None:
    """Bit by bit where no sum is divided."""
    found, expected = feed(model_dir(kind), LAYOUTS[layout]), alone(kind)
    assert_same(found, expected)
    if LAYOUTS[layout].tensor == 1:
        assert torch.equal(found.logits, expected.logits)


@pytest.mark.parametrize("layout", ["tp4", "tp2-pp2"])
def test_on_torch(
    layout: str, model_dir: Callable[[str], Path], alone: Callable[[str], Fed]
) -> None:
    assert_same(feed(model_dir("qwen2"), LAYOUTS[layout], "sdpa"), alone("qwen2"))


def test_layers_that_divide_their_outputs_keep_their_codes(
    model_dir: Callable[[str], Path],
) -> None:
    """int8 weights of column-parallel layers and of the head are those of one rank alone."""
    exceptions: Any = {"*.o_proj": "none", "*.down_proj": "none"}
    plan = QuantizationPlan("int8_weight_only", overrides=exceptions)
    expected = feed(model_dir("llama-tied"), plan=plan)
    for layout in ("tp4", "tp2-pp2"):
        assert_same(feed(model_dir("llama-tied"), LAYOUTS[layout], plan=plan), expected)


@pytest.mark.parametrize("scheme", ["int8", "int8_weight_only", "int4"])
@pytest.mark.parametrize("layout", ["tp2", "tp4", "tp2-pp2"])
def test_quantized_shares_are_as_close_to_the_plain_model_as_the_whole(
    scheme: Any,
    layout: str,
    model_dir: Callable[[str], Path],
    alone: Callable[[str], Fed],
) -> None:
    plain, plan = alone("qwen3").hidden, QuantizationPlan(scheme)

    def error(of: ParallelLayout | None) -> float:
        hidden = feed(model_dir("qwen3"), of, plan=plan).hidden
        return float((hidden - plain).norm() / plain.norm())

    assert 0 < error(LAYOUTS[layout]) < 1.2 * error(None)


def test_steps_with_exchanges_in_shared_memory_are_recorded(
    model_dir: Callable[[str], Path], alone: Callable[[str], Fed]
) -> None:
    library = load_library()
    if library is None:
        pytest.skip("needs the CPU kernels")
    collectives, layout, folder = CpuCollectives(library), LAYOUTS["tp2"], model_dir("qwen3")
    segment = Segment.create(SharedMemoryGroup.segment_bytes(collectives, 2))

    def body(ranks: Ranks) -> tuple[int, Fed | None]:
        group = SharedMemoryGroup(collectives, segment, ranks.dense.rank, 2, limit_s=60.0)
        ranks = Ranks(layout, ranks.place, group, ranks.experts, ranks.sequence, None, None)
        model = load_model(folder, torch.float32, "cpu", "auto", ranks=ranks)
        driver = RankDriver(model, ranks, Recorder(model.library))
        fed = driver.feed()
        return driver.num_runs, fed

    found = run_ranks(layout, body)
    parts = [fed for _, fed in found if fed is not None]
    assert_same(Fed(parts[0].hidden, torch.cat([fed.logits for fed in parts], 1)), alone("qwen3"))
    assert [num_runs for num_runs, _ in found] == [len(set(map(sum, CHUNKS)))] * 2


def test_a_stage_holds_nothing_of_the_others(model_dir: Callable[[str], Path]) -> None:
    last, middle, first = (
        load_model(model_dir("llama-bias"), None, "cpu", "sdpa", ranks=ranks)
        for ranks in make_ranks(LAYOUTS["pp3"])
    )
    assert [len(model.layers) for model in (first, middle, last)] == [1, 1, 1]
    assert [model.embedding is None for model in (first, middle, last)] == [False, True, True]
    assert [model.head is None for model in (first, middle, last)] == [True, True, False]
    assert [model.final_norm is None for model in (first, middle, last)] == [True, True, False]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shares_add_up_to_the_model(layout: str, model_dir: Callable[[str], Path]) -> None:
    """But for norms, which tensor ranks hold each, and key/value heads that two ranks hold."""
    whole = load_model(model_dir("qwen3"), None, "cpu", "sdpa")
    ranks = make_ranks(LAYOUTS[layout])
    shares = [load_model(model_dir("qwen3"), None, "cpu", "sdpa", ranks=one) for one in ranks]
    copies = LAYOUTS[layout].tensor - 1
    norms = (3 * (2 * 96 + 2 * 16) + 96) * 4
    doubled = 3 * 2 * 2 * 16 * 96 * 4 if layout == "tp4" else 0
    assert (
        sum(share.weight_bytes for share in shares) == whole.weight_bytes + copies * norms + doubled
    )


def test_unexpected_tensors_are_found_by_the_ranks_that_would_hold_them(
    model_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """No rank minds the tensors that others hold."""
    source = model_dir("llama-bias")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.2.mlp.extra"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    for ranks in make_ranks(LAYOUTS["tp2-pp2"]):
        if ranks.is_first_stage:
            load_model(tmp_path, None, "cpu", "sdpa", ranks=ranks)
            continue
        with pytest.raises(CheckpointError, match=r"unexpected .*: \['model.layers.2.mlp.extra'\]"):
            load_model(tmp_path, None, "cpu", "sdpa", ranks=ranks)


def test_groups_that_ranks_would_cut_are_refused(model_dir: Callable[[str], Path]) -> None:
    """On the fly, a rank's inputs are whole groups."""
    ranks = make_ranks(LAYOUTS["tp4"])[1]
    with pytest.raises(
        UnsupportedModelError,
        match=r"o_proj: .* inputs are 32 to 64 of 128, expected multiples of 64, .*; 1, 2 ranks",
    ):
        load_model(
            model_dir("qwen3"),
            None,
            "cpu",
            "sdpa",
            plan=QuantizationPlan("int4", group_size=64, overrides={"*.self_attn.[qkv]*": "none"}),
            ranks=ranks,
        )


def test_progress_is_the_ranks_own(model_dir: Callable[[str], Path]) -> None:
    seen: list[tuple[int, int]] = []
    ranks = make_ranks(LAYOUTS["pp2"])[1]
    load_model(
        model_dir("qwen3"),
        None,
        "cpu",
        "sdpa",
        lambda done, total: seen.append((done, total)),
        ranks=ranks,
    )
    assert seen == [(1, 2), (2, 2)]
