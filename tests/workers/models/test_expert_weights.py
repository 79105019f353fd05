"""Loading experts: what is quantized, kept for the next start, counted, and refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.driver import Driver
from tests.golden.models import CASES, save_random
from workers.kernels.library import load_library
from workers.layers.experts import NativeExperts, TorchExperts
from workers.layers.moe import SparseMlp
from workers.models import packed_cache
from workers.models.causal_lm import CausalLM
from workers.models.errors import CheckpointError
from workers.models.loader import load_model
from workers.quantization.plan import QuantizationPlan

BY_ID = {case.id: case for case in CASES}
TOKENS = [5, 9, 1, 7, 7, 101, 42]
NEEDS_KERNELS = pytest.mark.skipif(load_library() is None, reason="needs the CPU kernels")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model with a shared expert."""
    path = tmp_path_factory.mktemp("qwen2-moe")
    save_random(BY_ID["qwen2-moe"], path)
    return path


def load(folder: Path, plan: QuantizationPlan | None = None, **changes: Any) -> CausalLM:
    return load_model(folder, torch.float32, "cpu", "auto", plan=plan, **changes)


def logits(model: CausalLM) -> torch.Tensor:
    return Driver(model, 16, 16).feed(TOKENS)


def overrides(**schemes: Any) -> QuantizationPlan:
    return QuantizationPlan("none", overrides=schemes)


def test_schemes_are_by_the_names_of_experts(folder: Path) -> None:
    """Of one, of a part of all, of the shared one, and of none of them."""
    plain = load(folder)
    patterns = [
        "model.layers.0.mlp.experts.3.*",
        "*.experts.?.down_proj",
        "*.shared_expert.*",
        "*.self_attn.*",
    ]
    sizes = {load(folder, overrides(**{glob: "int8"})).weight_bytes for glob in patterns}
    assert len(sizes) == len(patterns)
    assert max(sizes) < plain.weight_bytes
    everything = load(folder, QuantizationPlan("int8"))
    assert everything.weight_bytes < min(sizes)


@pytest.mark.parametrize("pattern", ["*.mlp.gate", "*.shared_expert_gate", "*.experts.6.*"])
def test_routers_and_gates_are_no_linear_layers(folder: Path, pattern: str) -> None:
    """Nor are experts that are not there."""
    with pytest.raises(ValueError, match=r"quantization_overrides: got '\*\."):
        load(folder, overrides(**{pattern: "int8"}))


@NEEDS_KERNELS
@pytest.mark.parametrize(
    ("pattern", "kind"),
    [
        ("*.experts.3.*", NativeExperts),
        ("*.down_proj", NativeExperts),
        ("*.experts.2.up_proj", TorchExperts),  # gate and up are then two products
    ],
)
def test_experts_of_several_kinds_compute_what_plain_torch_does(
    folder: Path, pattern: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = overrides(**{pattern: "int8_weight_only"})
    model = load(folder, plan)
    mlp = model.layers[0].mlp
    assert isinstance(mlp, SparseMlp)
    assert isinstance(mlp.experts, kind)
    assert model.is_native == (kind is NativeExperts)
    found = logits(model)
    monkeypatch.setattr("workers.kernels.library._machine_library", lambda: None)
    torch.testing.assert_close(found, logits(load(folder, plan)), atol=1e-4, rtol=1e-4)


def test_int8_experts_stay_close_to_plain_ones(folder: Path) -> None:
    plain, found = logits(load(folder)), logits(load(folder, overrides(**{"*.experts.*": "int8"})))
    error = (found - plain).norm(dim=1) / plain.norm(dim=1)
    assert 0 < error.median() < 0.05


@NEEDS_KERNELS
def test_the_next_start_finds_the_same_experts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_cache, "_LEAST_BYTES", 0)
    monkeypatch.setattr(packed_cache, "cache_dir", lambda: tmp_path)
    plan = QuantizationPlan("int8")
    fresh = load(folder, plan, packed_cache_bytes=2**30)
    (kept,) = (tmp_path / "weights").iterdir()
    written = (kept / "weights.bin").stat().st_mtime_ns
    cached = load(folder, plan, packed_cache_bytes=2**30)
    assert (kept / "weights.bin").stat().st_mtime_ns == written
    assert cached.weight_bytes == fresh.weight_bytes
    assert torch.equal(logits(cached), logits(fresh))


def test_weights_are_counted_once_and_all(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    assert load(folder).weight_bytes == sum(tensor.nbytes for tensor in stored.values())


def edit(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_bytes((source / "config.json").read_bytes())


def test_a_missing_expert_is_named(folder: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.experts.4.up_proj.weight"
    edit(folder, tmp_path, lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=rf"lacks the tensor {name}"):
        load(tmp_path)


def test_experts_beyond_those_of_the_configuration_are_named(folder: Path, tmp_path: Path) -> None:
    extra = "model.layers.1.mlp.experts.6.up_proj.weight"
    edit(folder, tmp_path, lambda tensors: tensors.update({extra: torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=rf"unexpected tensors .*{extra}"):
        load(tmp_path)
