"""Loading weights: what is accepted, what is refused, and how ranks share them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tests.golden.driver import Driver
from tests.golden.models import CASES, save_random
from workers.layers.sharding import Shard
from workers.models.checkpoint import Checkpoint
from workers.models.errors import CheckpointError
from workers.models.loader import load_model
from workers.models.weights import Weights

BY_ID = {case.id: case for case in CASES}
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def biased(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("biased")
    save_random(BY_ID["llama-bias"], folder)
    return folder


def edit(source: Path, target: Path, change: Callable[[Tensors], object]) -> None:
    """Copy a model with changed tensors."""
    tensors = load_file(source / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_bytes((source / "config.json").read_bytes())


def load(folder: Path) -> object:
    return load_model(folder, torch.float32, "cpu", "reference")


def test_progress_counts_layers(biased: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_model(biased, None, "cpu", "sdpa", lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_dtype_is_the_files_own_or_the_one_asked_for(biased: Path) -> None:
    own = load_model(biased, None, "cpu", "sdpa")
    asked = load_model(biased, torch.bfloat16, "cpu", "sdpa")
    assert own.final_norm is not None
    assert asked.embedding is not None
    assert own.dtype == own.final_norm.dtype == torch.float32
    assert asked.dtype == asked.embedding.dtype == torch.bfloat16


def test_missing_tensors_are_named(biased: Path, tmp_path: Path) -> None:
    edit(biased, tmp_path, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CheckpointError, match=r"lacks the tensor model\.layers\.1\.mlp\.up_proj"):
        load(tmp_path)


def test_unexpected_tensors_are_named(biased: Path, tmp_path: Path) -> None:
    extra = "model.layers.3.mlp.up_proj.weight"
    edit(biased, tmp_path, lambda tensors: tensors.update({extra: torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=rf"unexpected tensors for Llama\w+: \['{extra}'\]"):
        load(tmp_path)


def test_misshaped_tensors_are_named_with_both_shapes(biased: Path, tmp_path: Path) -> None:
    edit(biased, tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.ones(5)}))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \(5,\), .* \(96,\)"):
        load(tmp_path)


def test_float16_becomes_bfloat16_on_a_cpu(biased: Path, tmp_path: Path) -> None:
    """No processor that we serve on multiplies float16 quickly, and our kernels do not at all."""

    def halve(tensors: Tensors) -> None:
        tensors.update({name: tensor.half() for name, tensor in tensors.items()})

    edit(biased, tmp_path, halve)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"float16"'))
    assert '"float16"' in config.read_text()
    assert load_model(tmp_path, None, "cpu", "auto").dtype == torch.bfloat16


def test_rotary_tables_of_old_files_are_passed_over(biased: Path, tmp_path: Path) -> None:
    extra = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(biased, tmp_path, lambda tensors: tensors.update({extra: torch.zeros(8)}))
    load(tmp_path)


def test_a_tied_head_that_was_saved_too_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    save_random(BY_ID["llama-tied"], tmp_path / "whole")
    name, size = "lm_head.weight", (199, 96)
    edit(tmp_path / "whole", tmp_path, lambda tensors: tensors.update({name: torch.zeros(size)}))
    load(tmp_path)


def test_a_folder_without_weights_is_named(biased: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((biased / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=r"holds neither model\.safetensors nor"):
        load(tmp_path)


def test_a_damaged_file_is_named(biased: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((biased / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(CheckpointError, match=r"cannot read .*model\.safetensors"):
        load(tmp_path)


def test_several_files_hold_the_same_model(biased: Path, tmp_path: Path) -> None:
    save_random(BY_ID["llama-bias"], tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    one, several = (load_model(f, None, "cpu", "sdpa") for f in (biased, tmp_path))
    assert one.embedding is not None
    assert several.embedding is not None
    assert torch.equal(one.embedding, several.embedding)
    left, right = (Driver(model, 16, 16).feed([5, 9, 1, 7]) for model in (one, several))
    assert torch.equal(left, right)


def _weights(checkpoint: Checkpoint, rank: int, world_size: int) -> Weights:
    shard = Shard(rank, world_size)
    return Weights(checkpoint, shard, torch.float32, torch.device("cpu"))


def test_column_parallel_ranks_compute_their_part_of_every_output(biased: Path) -> None:
    """Each rank's rows of q, k and v, in that order."""
    tensors = load_file(biased / "model.safetensors")
    prefix, sizes = "model.layers.0.self_attn", {"q_proj": 96, "k_proj": 32, "v_proj": 32}
    x = torch.randn(3, 96)

    def output(weights: Weights) -> torch.Tensor:
        outputs = {name: weights.outputs(size) for name, size in sizes.items()}
        return weights.column_parallel(prefix, outputs, 96, bias=True)(x)

    with Checkpoint(biased) as checkpoint:
        found = [output(_weights(checkpoint, rank, 2)) for rank in range(2)]
    for offset, (name, size) in zip((0, 48, 64), sizes.items(), strict=True):
        weight, bias = tensors[f"{prefix}.{name}.weight"], tensors[f"{prefix}.{name}.bias"]
        parts = [output[:, offset : offset + size // 2] for output in found]
        torch.testing.assert_close(torch.cat(parts, dim=1), F.linear(x, weight, bias))


def test_row_parallel_ranks_sum_to_the_whole(biased: Path) -> None:
    """The bias is counted once."""
    tensors = load_file(biased / "model.safetensors")
    name = "model.layers.0.mlp.down_proj"
    x = torch.randn(3, 80)
    with Checkpoint(biased) as checkpoint:
        parts = [
            _weights(checkpoint, rank, 4).row_parallel(name, 80, 96, bias=True)(
                x[:, Shard(rank, 4).part(80)].contiguous()
            )
            for rank in range(4)
        ]
    whole = F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
    torch.testing.assert_close(torch.stack(parts).sum(0), whole)
