"""Weights quantized as they are loaded: how close they are, and what the forms mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.quantization.quantize import quantize_int4, quantize_int8
from workers.quantization.quantized_weight import QuantizedWeight, can_join, join
from workers.quantization.served_form import served_form

sizes = st.integers(1, 9)
seeds = st.integers(0, 99)


def random_weight(outputs: int, inputs: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, inputs, generator=generator)


@settings(deadline=None, max_examples=30)
@given(
    outputs=sizes, inputs=sizes, seed=seeds, dtype=st.sampled_from([torch.float32, torch.bfloat16])
)
def test_int8_is_within_half_a_step(
    outputs: int, inputs: int, seed: int, dtype: torch.dtype
) -> None:
    weight = random_weight(outputs, inputs, seed).to(dtype)
    found = quantize_int8(weight, "none")
    step = weight.float().abs().amax(1, keepdim=True) / 127
    assert ((found.dequantize() - weight.float()).abs() <= step * 0.501).all()
    assert found.group_size == inputs
    assert found.zeros is None
    assert int(found.codes.min()) >= -127


@settings(deadline=None, max_examples=30)
@given(outputs=sizes, groups=sizes, group_size=st.sampled_from([32, 64]), seed=seeds)
def test_int4_is_no_worse_than_rounding_to_the_whole_range(
    outputs: int, groups: int, group_size: int, seed: int
) -> None:
    """In squared error, group by group."""
    weight = random_weight(outputs, groups * group_size, seed)
    found = quantize_int4(weight, group_size, "none").dequantize()
    errors = (found - weight).view(-1, group_size).square().sum(1)
    grouped = weight.view(-1, group_size)
    low, high = grouped.amin(1, keepdim=True).clamp(max=0), grouped.amax(1, keepdim=True)
    step = (high.clamp(min=0) - low) / 15
    zero = (-low / step).round()
    plain = (((grouped / step).round() + zero).clamp(0, 15) - zero) * step
    assert (errors <= (plain - grouped).square().sum(1) + 1e-5).all()


@pytest.mark.parametrize("value", [0.0, 3.0, -0.5])
def test_constant_weights_are_kept(value: float) -> None:
    weight = torch.full((3, 64), value)
    for found in (quantize_int8(weight, "none"), quantize_int4(weight, 32, "none")):
        torch.testing.assert_close(found.dequantize(), weight)


def test_int4_needs_whole_groups() -> None:
    with pytest.raises(ValueError, match="group_size: got 32, expected a divisor of 80 inputs"):
        quantize_int4(torch.zeros(2, 80), 32, "none")


def test_joined_weights_stand_for_the_stacked_ones() -> None:
    """Also if only one of them has zeros."""
    one, other = (quantize_int4(random_weight(n, 64, n), 32, "none") for n in (3, 5))
    assert other.zeros is not None
    plain = QuantizedWeight(other.codes, other.scales, None, 4, 32)
    both = join([one, plain])
    assert torch.equal(both.dequantize(), torch.cat([one.dequantize(), plain.dequantize()]))


def test_weights_that_differ_in_kind_or_order_cannot_be_joined() -> None:
    weight = random_weight(4, 64, 0)
    ordered = QuantizedWeight(
        torch.zeros(4, 64, dtype=torch.uint8),
        torch.ones(4, 2),
        None,
        4,
        32,
        input_order=torch.randperm(64),
    )
    parts = [quantize_int8(weight, "none"), quantize_int8(weight, "int8"), ordered]
    parts += [quantize_int4(weight, size, "none") for size in (32, 64)]
    for index, part in enumerate(parts):
        assert [can_join([part, other]) for other in parts] == [
            index == place for place in range(len(parts))
        ]
    with pytest.raises(ValueError, match="equal bits, groups, activations and order"):
        join(parts[:2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": torch.zeros(2, 64)}, r"codes: got torch\.float32, expected torch\.uint8"),
        ({"group_size": 48}, "group_size: got 48, expected a divisor of 64"),
        ({"scales": torch.zeros(2, 3)}, r"scales: .*\(2, 3\), expected torch\.float32 .*\(2, 2\)"),
        ({"zeros": torch.zeros(2, 2)}, r"zeros: got torch\.float32 .* expected torch\.uint8"),
        ({"input_order": torch.zeros(3, dtype=torch.int64)}, r"input_order: .* \(64,\)"),
    ],
)
def test_fields_that_contradict_each_other_are_named(
    changes: dict[str, object], message: str
) -> None:
    fields = {
        "codes": torch.zeros(2, 64, dtype=torch.uint8),
        "scales": torch.zeros(2, 2),
        "zeros": None,
        "bits": 4,
        "group_size": 32,
    }
    with pytest.raises(ValueError, match=message):
        QuantizedWeight(**(fields | changes))  # type: ignore[arg-type]


def any_weight(bits: int, group_size: int, *, zeros: bool) -> QuantizedWeight:
    dtype, low, high = (torch.int8, -128, 128) if bits == 8 else (torch.uint8, 0, 16)
    grid = (6, 256 // group_size)
    return QuantizedWeight(
        torch.randint(low, high, (6, 256), dtype=dtype),
        torch.rand(grid),
        torch.randint(low, high, grid, dtype=dtype) if zeros else None,
        8 if bits == 8 else 4,
        group_size,
        input_order=torch.randperm(256),
    )


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 256])
def test_the_served_form_stands_for_the_same_weight(
    bits: int, group_size: int, zeros: bool
) -> None:
    weight = any_weight(bits, group_size, zeros=zeros)
    found = served_form(weight, torch.float32)
    same = found if isinstance(found, torch.Tensor) else found.dequantize()
    assert torch.equal(same, weight.dequantize())
    if isinstance(found, QuantizedWeight):
        assert found.activations == "none"
        assert (bits, found.group_size) in {(8, 256), (4, 32), (4, 64), (4, 128)}


def test_int4_quantizes_activations_unless_the_model_is_float32() -> None:
    found = served_form(any_weight(4, 32, zeros=True), torch.bfloat16)
    assert isinstance(found, QuantizedWeight)
    assert found.activations == "int8"
