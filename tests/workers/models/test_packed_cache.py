"""Packed weights on disk: the same model comes back, and only that one."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.models import CASES, save_random
from tests.workers.parallel.thread_group import make_ranks
from workers.kernels.cpu_gemm import PackedSpec, PackedWeight
from workers.kernels.library import load_library
from workers.layers.workspace import Workspace
from workers.models import packed_cache as module
from workers.models.causal_lm import CausalLM
from workers.models.loader import load_model
from workers.models.packed_cache import CachedWeight, PackedCache
from workers.parallel.layout import ParallelLayout
from workers.quantization.plan import QuantizationPlan

pytestmark = pytest.mark.skipif(load_library() is None, reason="needs the CPU kernels")

BUDGET = 2**30
(BIASED,) = (case for case in CASES if case.id == "llama-bias")


@pytest.fixture(autouse=True)
def small_models_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(module, "_LEAST_BYTES", 0)
    monkeypatch.setattr(module, "cache_dir", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "weights"


@pytest.fixture
def model_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    save_random(BIASED, folder)
    return folder


def load(folder: Path, **changes: Any) -> CausalLM:
    arguments = {"packed_cache_bytes": BUDGET, **changes}
    return load_model(folder, torch.float32, "cpu", "auto", **arguments)


def same_layers(left: CausalLM, right: CausalLM) -> bool:
    x = torch.randn(3, left.config.hidden_size)
    pairs = zip(_products(left, x), _products(right, x), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def _products(model: CausalLM, x: torch.Tensor) -> list[torch.Tensor]:
    workspace = Workspace.allocate(model.shape, len(x), model.dtype, model.device)
    found = []
    if model.head is not None:
        found.append(model.logits(x, torch.empty(len(x), model.shape.num_vocab)))
    for layer in model.layers:
        found += (layer.attention.qkv(x), layer.mlp(x, workspace).clone())
    return found


@pytest.mark.parametrize("scheme", ["none", "int8"])
def test_the_next_start_finds_the_same_layers(
    model_dir: Path, small_models_count: Path, scheme: Any
) -> None:
    plan = QuantizationPlan(scheme)
    fresh = load(model_dir, plan=plan)
    (folder,) = small_models_count.iterdir()
    written = (folder / "weights.bin").stat().st_mtime_ns
    cached = load(model_dir, plan=plan)
    assert (folder / "weights.bin").stat().st_mtime_ns == written
    assert same_layers(fresh, cached)
    assert cached.weight_bytes == fresh.weight_bytes


def test_other_weights_or_settings_have_another_cache(
    model_dir: Path, small_models_count: Path
) -> None:
    load(model_dir)
    load(model_dir, plan=QuantizationPlan("int8"))
    assert len(list(small_models_count.iterdir())) == 2
    os.utime(model_dir / "model.safetensors")
    changed = load(model_dir)
    assert len(list(small_models_count.iterdir())) == 3
    assert same_layers(changed, load(model_dir, packed_cache_bytes=0))


def test_ranks_that_hold_other_weights_have_another_cache(
    model_dir: Path, small_models_count: Path
) -> None:
    """Sequence ranks hold the same."""
    layout = ParallelLayout(tensor=2, pipeline=3, sequence=2)
    fresh = [load(model_dir, ranks=ranks) for ranks in make_ranks(layout)]
    assert len(list(small_models_count.iterdir())) == 2 * 3
    load(model_dir)
    load(model_dir, ranks=make_ranks(ParallelLayout(tensor=2))[0])
    assert len(list(small_models_count.iterdir())) == 2 * 3 + 2
    for ranks, model in zip(make_ranks(layout), fresh, strict=True):
        assert same_layers(load(model_dir, ranks=ranks), model)
    assert len(list(small_models_count.iterdir())) == 2 * 3 + 2


def test_a_damaged_cache_is_made_again(model_dir: Path, small_models_count: Path) -> None:
    fresh = load(model_dir)
    for damage in ("truncated", "no index"):
        (folder,) = small_models_count.iterdir()
        if damage == "truncated":
            (folder / "weights.bin").write_bytes(b"short")
        else:
            (folder / "index.json").unlink()
        assert same_layers(load(model_dir), fresh), damage
        assert (folder / "index.json").exists()


def test_another_configuration_has_another_cache(model_dir: Path, small_models_count: Path) -> None:
    load(model_dir)
    config = model_dir / "config.json"
    config.write_text(config.read_text() + "\n")
    load(model_dir)
    assert len(list(small_models_count.iterdir())) == 2


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    def add(name: str) -> None:
        cache = PackedCache(tmp_path / name, max_bytes=3000)
        cache.add("layer", CachedWeight(weight(1000), 1000))
        cache.save()

    for name in ("a", "b"):
        add(name)
    PackedCache(tmp_path / "a", max_bytes=3000)  # a use
    add("c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c"]


def test_no_room_and_no_permission_are_no_errors(tmp_path: Path) -> None:
    for folder in (tmp_path / "x", Path("/proc/nowhere/x")):
        cache = PackedCache(folder, max_bytes=10 if folder.parent == tmp_path else 10**6)
        cache.add("layer", CachedWeight(weight(1000), 1000))
        cache.save()
        assert not PackedCache(folder, max_bytes=10**6).is_found


def weight(num_bytes: int) -> PackedWeight:
    return PackedWeight(
        PackedSpec("float32", 16, 16), {"weight": torch.zeros(num_bytes, dtype=torch.uint8)}
    )
