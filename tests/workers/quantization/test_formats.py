"""What quantized checkpoints store is read to the last code, whole or in ranks' parts."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.workers.quantization import packers
from tests.workers.quantization.packers import Quantized, Tensors
from workers.layers.sharding import Shard
from workers.models.checkpoint import Checkpoint
from workers.models.errors import CheckpointError, UnsupportedModelError
from workers.models.formats.format import QuantizedFormat, WeightPart
from workers.models.formats.registry import parse_quantization
from workers.models.raw_config import RawConfig
from workers.quantization.quantized_weight import QuantizedWeight

MODULE = "model.layers.0.mlp.down_proj"
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}
DYNAMIC = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def arbitrary(outputs: int, inputs: int, group_size: int, bits: int, seed: int) -> Quantized:
    """Any codes, zeros and scales; in version 1 of GPTQ, zeros start from 1."""
    random, top = Random(seed), 2**bits - 1
    num_groups = inputs // group_size
    return Quantized(
        codes=[random.choices(range(top + 1), k=inputs) for _ in range(outputs)],
        zeros=[random.choices(range(1, top + 1), k=num_groups) for _ in range(outputs)],
        scales=torch.rand(outputs, num_groups).tolist(),
        groups=[column // group_size for column in range(inputs)],
        bits=bits,
    )


def shuffled(weight: Quantized, seed: int) -> Quantized:
    groups = Random(seed).sample(weight.groups, len(weight.groups))
    return weight._replace(groups=groups)


def symmetric(weight: Quantized) -> Quantized:
    middle = 2 ** (weight.bits - 1)
    return weight._replace(zeros=[[middle] * len(row) for row in weight.zeros])


def format_of(**fields: Any) -> QuantizedFormat:
    parsed = parse_quantization(RawConfig({"quantization_config": fields}))
    assert parsed is not None
    return parsed


def compressed(
    layout: str, inputs: dict[str, Any] | None = None, **weights: Any
) -> QuantizedFormat:
    group = {
        "targets": ["Linear"],
        "weights": {**WEIGHTS, **weights},
        "input_activations": inputs,
        "output_activations": None,
    }
    return format_of(
        quant_method="compressed-tensors",
        format=layout,
        quantization_status="compressed",
        config_groups={"group_0": group},
        ignore=["lm_head"],
        kv_cache_scheme=None,
    )


def save(tensors: Tensors, folder: Path) -> Path:
    named = {f"{MODULE}.{name}": tensor for name, tensor in tensors.items()}
    save_file(named, folder / "model.safetensors")
    return folder


def read(
    layout: QuantizedFormat, folder: Path, shape: tuple[int, int], *spans: slice
) -> QuantizedWeight:
    rows, columns = spans or (slice(0, shape[0]), slice(0, shape[1]))
    with Checkpoint(folder) as checkpoint:
        assert layout.holds(checkpoint, MODULE)
        weight = layout.read(checkpoint, WeightPart(MODULE, shape, rows, columns))
        assert checkpoint.unread == [] or spans
    return weight


anything = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@anything
@given(
    outputs=st.sampled_from([8, 24]),
    num_groups=st.integers(1, 3),
    group_size=st.sampled_from([8, 16, 32]),
    bits=st.sampled_from([4, 8]),
    version=st.sampled_from([1, 2]),
    has_order=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gptq(
    outputs: int,
    num_groups: int,
    group_size: int,
    bits: int,
    version: int,
    has_order: bool,
    seed: int,
    tmp_path: Path,
) -> None:
    inputs = num_groups * group_size
    weight = arbitrary(outputs, inputs, group_size, bits, seed)
    weight = shuffled(weight, seed) if has_order else weight
    folder = save(packers.gptq(weight, version=version), tmp_path)
    layout = format_of(
        quant_method="gptq",
        bits=bits,
        group_size=group_size,
        checkpoint_format="gptq" if version == 1 else "gptq_v2",
        desc_act=has_order,
        sym=False,
    )
    found = read(layout, folder, (outputs, inputs))
    assert torch.equal(found.dequantize(), weight.dequantized())
    assert (found.input_order is None) == (weight.groups == sorted(weight.groups))


@anything
@given(
    outputs=st.sampled_from([8, 40]),
    num_groups=st.integers(1, 3),
    group_size=st.sampled_from([8, 32]),
    seed=st.integers(0, 99),
)
def test_awq(outputs: int, num_groups: int, group_size: int, seed: int, tmp_path: Path) -> None:
    inputs = num_groups * group_size
    weight = arbitrary(outputs, inputs, group_size, 4, seed)
    layout = format_of(
        quant_method="awq", bits=4, group_size=group_size, version="GEMM", zero_point=True
    )
    found = read(layout, save(packers.awq(weight), tmp_path), (outputs, inputs))
    assert torch.equal(found.dequantize(), weight.dequantized())


@anything
@given(
    outputs=st.integers(1, 20),
    num_groups=st.integers(1, 3),
    group_size=st.sampled_from([6, 16]),
    bits=st.sampled_from([4, 8]),
    is_symmetric=st.booleans(),
    has_order=st.booleans(),
    seed=st.integers(0, 99),
)
def test_compressed_tensors_packed(
    outputs: int,
    num_groups: int,
    group_size: int,
    bits: int,
    is_symmetric: bool,
    has_order: bool,
    seed: int,
    tmp_path: Path,
) -> None:
    """Also where the last word of a row is not full."""
    inputs = num_groups * group_size
    weight = arbitrary(outputs, inputs, group_size, bits, seed)
    weight = symmetric(weight) if is_symmetric else weight
    weight = shuffled(weight, seed) if has_order else weight
    tensors = packers.packed_tensors(weight, symmetric=is_symmetric, has_order=has_order)
    layout = compressed(
        "pack-quantized", num_bits=bits, symmetric=is_symmetric, group_size=group_size
    )
    found = read(layout, save(tensors, tmp_path), (outputs, inputs))
    assert torch.equal(found.dequantize(), weight.dequantized())
    assert found.zeros is None or not is_symmetric


@pytest.mark.parametrize("is_symmetric", [True, False])
@pytest.mark.parametrize(("inputs", "activations"), [(None, "none"), (DYNAMIC, "int8")])
def test_compressed_tensors_integers(
    inputs: dict[str, Any] | None, activations: str, is_symmetric: bool, tmp_path: Path
) -> None:
    weight = arbitrary(12, 20, 20, 8, 5)
    weight = symmetric(weight) if is_symmetric else weight
    layout = compressed(
        "int-quantized",
        inputs,
        num_bits=8,
        symmetric=is_symmetric,
        strategy="channel",
        group_size=None,
    )
    tensors = packers.integer_tensors(weight, symmetric=is_symmetric)
    found = read(layout, save(tensors, tmp_path), (12, 20))
    assert torch.equal(found.dequantize(), weight.dequantized())
    assert found.activations == activations


LAYOUTS = {
    "gptq": (packers.gptq, format_of(quant_method="gptq", bits=4, group_size=16)),
    "awq": (packers.awq, format_of(quant_method="awq", bits=4, group_size=16)),
    "compressed": (
        lambda weight: packers.packed_tensors(weight, symmetric=False),
        compressed("pack-quantized", symmetric=False),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_read_their_part(name: str, rank: int, tmp_path: Path) -> None:
    """Along outputs and along inputs."""
    pack, layout = LAYOUTS[name]
    weight = arbitrary(32, 64, 16, 4, 7)
    folder, whole, shard = save(pack(weight), tmp_path), weight.dequantized(), Shard(rank, 2)
    rows = read(layout, folder, (32, 64), shard.part(32), slice(0, 64)).dequantize()
    columns = read(layout, folder, (32, 64), slice(0, 32), shard.part(64)).dequantize()
    assert torch.equal(rows, whole[shard.part(32)])
    assert torch.equal(columns, whole[:, shard.part(64)])


CHANNELS: dict[str, Any] = {
    "gptq": (packers.gptq, format_of(quant_method="gptq", bits=4, group_size=-1)),
    "compressed": (
        lambda weight: packers.packed_tensors(weight, symmetric=False),
        compressed("pack-quantized", symmetric=False, strategy="channel", group_size=None),
    ),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_parts_keep_the_scales_of_whole_rows(name: str, tmp_path: Path) -> None:
    """Where each output has one scale, any part of its inputs has the same."""
    pack, layout = CHANNELS[name]
    weight = arbitrary(16, 80, 80, 4, 7)
    folder = save(pack(weight), tmp_path)
    part = read(layout, folder, (16, 80), slice(0, 16), slice(40, 80))
    assert part.group_size == 40
    assert torch.equal(part.dequantize(), weight.dequantized()[:, 40:])


@pytest.mark.parametrize("num_ranks", [2, 3, 4, 6])
@pytest.mark.parametrize("name", ["gptq", "awq", "compressed"])
def test_groups_on_both_sides_of_a_cut_are_divided(
    name: str, num_ranks: int, tmp_path: Path
) -> None:
    """Into pieces that kernels multiply."""
    pack, layout = LARGE_GROUPS[name]
    weight = arbitrary(8, 384, 128, 4, 7)
    folder, found = save(pack(weight), tmp_path), []
    for rank in range(num_ranks):
        columns = Shard(rank, num_ranks).part(384)
        found.append(read(layout, folder, (8, 384), slice(0, 8), columns))
    assert torch.equal(torch.cat([part.dequantize() for part in found], 1), weight.dequantized())
    assert all(part.group_size % 32 == 0 for part in found)


LARGE_GROUPS: dict[str, Any] = {
    "gptq": (packers.gptq, format_of(quant_method="gptq", bits=4, group_size=128)),
    "awq": (packers.awq, format_of(quant_method="awq", bits=4, group_size=128)),
    "compressed": (
        lambda weight: packers.packed_tensors(weight, symmetric=False),
        compressed("pack-quantized", symmetric=False, group_size=128),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_parts_that_would_cut_a_group_are_refused(name: str, tmp_path: Path) -> None:
    pack, layout = LAYOUTS[name]
    folder = save(pack(arbitrary(32, 48, 16, 4, 7)), tmp_path)
    with pytest.raises(
        UnsupportedModelError, match=r"inputs are 0 to 24 of 48, .* multiples of 16, .*; 1, 3 ranks"
    ):
        read(layout, folder, (32, 48), slice(0, 32), slice(0, 24))


def test_ranks_cannot_share_inputs_that_are_in_another_order(tmp_path: Path) -> None:
    folder = save(packers.gptq(shuffled(arbitrary(8, 64, 16, 4, 7), 3)), tmp_path)
    with pytest.raises(UnsupportedModelError, match="expected desc_act false"):
        read(LAYOUTS["gptq"][1], folder, (8, 64), slice(0, 8), slice(0, 32))


def test_groups_of_several_sizes_are_refused(tmp_path: Path) -> None:
    weight = arbitrary(8, 64, 16, 4, 7)
    uneven = weight._replace(groups=[0] * 17 + weight.groups[17:])
    with pytest.raises(UnsupportedModelError, match="g_idx has groups of several sizes"):
        read(LAYOUTS["gptq"][1], save(packers.gptq(uneven), tmp_path), (8, 64))


def test_misshaped_tensors_are_named(tmp_path: Path) -> None:
    folder = save(packers.gptq(arbitrary(8, 64, 16, 4, 7)), tmp_path)
    with pytest.raises(CheckpointError, match=rf"{MODULE}\.g_idx has shape \(64,\), .*\(128,\)"):
        read(LAYOUTS["gptq"][1], folder, (8, 128))


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 4}, "lacks 'quant_method'"),
        ({"quant_method": "fp8"}, "'fp8'; known: awq, compressed-tensors, gptq"),
        (GPTQ | {"bits": 3}, r"quantization_config\.bits is 3; supported: 4, 8"),
        (GPTQ | {"group_size": 0}, r"group_size is 0; supported: -1 and positive"),
        (
            GPTQ | {"checkpoint_format": "marlin"},
            "checkpoint_format is 'marlin'; supported: 'gptq'",
        ),
        (GPTQ | {"dynamic": {"-:lm_head": {}}}, "dynamic has -:lm_head"),
        (AWQ | {"bits": 8}, "bits is 8; supported: 4"),
        (AWQ | {"version": "gemv"}, "version is 'gemv'; supported: 'gemm'"),
        (AWQ | {"zero_point": False}, "zero_point is False; supported: True"),
    ],
)
def test_what_is_not_supported_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        format_of(**fields)


@pytest.mark.parametrize(
    ("layout", "inputs", "weights", "message"),
    [
        ("float-quantized", None, {}, "format is 'float-quantized'; supported: 'pack-quantized'"),
        ("pack-quantized", None, {"type": "float"}, r"weights\.type is 'float'; supported: 'int'"),
        ("pack-quantized", None, {"num_bits": 2}, r"num_bits is 2; supported: 4, 8"),
        ("int-quantized", None, {}, r"num_bits is 4; supported: 8"),
        (
            "pack-quantized",
            None,
            {"strategy": "tensor"},
            "strategy is 'tensor'; supported: 'group'",
        ),
        ("pack-quantized", DYNAMIC | {"dynamic": False}, {}, "dynamic is False; supported: True"),
        ("pack-quantized", DYNAMIC | {"symmetric": False}, {}, "symmetric is False"),
    ],
)
def test_what_is_not_supported_of_compressed_tensors_is_named(
    layout: str, inputs: dict[str, Any] | None, weights: dict[str, Any], message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        compressed(layout, inputs, **weights)


@pytest.mark.parametrize(
    ("targets", "ignore", "expected"),
    [
        (["Linear"], [], True),
        (["Linear"], [MODULE], False),
        (["Linear"], ["re:.*down_proj$"], False),
        (["re:.*mlp.*"], ["lm_head"], True),
        (["re:.*self_attn.*"], [], False),
        ([MODULE], [], True),
    ],
)
def test_targets_and_exceptions_are_names_expressions_or_the_class(
    targets: list[str], ignore: list[str], expected: bool, tmp_path: Path
) -> None:
    layout = format_of(
        quant_method="compressed-tensors",
        format="pack-quantized",
        config_groups={"group_0": {"targets": targets, "weights": WEIGHTS}},
        ignore=ignore,
    )
    save({"weight": torch.zeros(1)}, tmp_path)
    with Checkpoint(tmp_path) as checkpoint:
        assert layout.holds(checkpoint, MODULE) == expected
