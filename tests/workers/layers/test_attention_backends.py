"""Every backend gives each sequence what plain attention over its own tokens would."""

import pytest
import torch
from hypothesis import given, settings

from tests.workers.layers.attention_batch import Batch, Row, Setup, setups
from workers.kernels.library import load_library
from workers.layers.attention import AttentionShape
from workers.layers.attention_registry import ATTENTION_BACKENDS, attention_backend
from workers.layers.native_attention import NativeAttention
from workers.layers.sdpa_attention import SdpaAttention
from workers.registry import UnknownChoiceError

HAS_KERNELS = load_library() is not None
BACKENDS = pytest.mark.parametrize(
    "backend", [name for name in ATTENTION_BACKENDS.names if HAS_KERNELS or name != "native"]
)


def run(batch: Batch, name: str) -> torch.Tensor:
    return batch.run(ATTENTION_BACKENDS.get(name)(batch.setup.shape))


@BACKENDS
@settings(deadline=None, max_examples=80)
@given(setup=setups())
def test_each_sequence_as_if_alone(backend: str, setup: Setup) -> None:
    """Whatever the lengths, chunks, windows, head groups, block sizes, norms, types, padding."""
    batch = Batch(setup)
    output = run(batch, backend)
    # A rounding difference before int8 may move an element by a whole step.
    atol = 1e-5 if setup.cache_dtype == torch.float32 else 5e-2
    for sequence, expected in enumerate(batch.expected()):
        rows = slice(*batch.metadata.query_starts[sequence : sequence + 2])
        torch.testing.assert_close(output[rows], expected, atol=atol, rtol=1e-4)


@BACKENDS
@settings(deadline=None, max_examples=20)
@given(setup=setups())
def test_keys_and_values_are_in_the_cache_afterwards(backend: str, setup: Setup) -> None:
    batch = Batch(setup)
    run(batch, backend)
    layer = batch.layer
    for rows_of, store, scales in (
        (batch.keys, layer.keys, layer.key_scales),
        (batch.values, layer.values, layer.value_scales),
    ):
        fresh = torch.cat([rows_of(s)[row.context :] for s, row in enumerate(setup.rows)])
        stored = store.flatten(0, 1)[batch.metadata.slot_mapping].float()
        if scales is not None:
            step = scales.flatten(0, 1)[batch.metadata.slot_mapping][..., None]
            assert ((stored * step - fresh).abs() <= 0.51 * step).all()
        else:
            torch.testing.assert_close(stored, fresh, atol=1e-6, rtol=1e-5)
    assert not any(store[0].any() for store in layer if store is not None)


@BACKENDS
def test_padding_rows_are_zero(backend: str) -> None:
    """Even when what stands in them is not a number."""
    batch = Batch(Setup([Row(3, 1), Row(0, 5)], 2, 1, 4, None, padding=2))
    output = run(batch, backend)
    assert output.isfinite().all()
    assert not output[-2:].any()


@BACKENDS
def test_groups_of_many_lengths(backend: str) -> None:
    """More decoding sequences than one group takes."""
    rows = [Row(length, 1) for length in range(0, 4000, 57)]
    batch = Batch(Setup(rows, 4, 4, 16, None, padding=0))
    output = run(batch, backend)
    expected = torch.cat(list(batch.expected()))
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownChoiceError, match=r"'flash'; known: .*reference, sdpa"):
        ATTENTION_BACKENDS.get("flash")


@pytest.mark.parametrize(
    ("dtype", "head_dim", "is_native"),
    [(torch.float32, 64, True), (torch.float16, 64, False), (torch.bfloat16, 1024, False)],
)
def test_auto_is_native_where_the_kernels_can_serve(
    dtype: torch.dtype, head_dim: int, is_native: bool
) -> None:
    shape = AttentionShape(2, 1, head_dim)
    backend = attention_backend("auto", shape, dtype, torch.device("cpu"))
    expected = NativeAttention if is_native and HAS_KERNELS else SdpaAttention
    assert isinstance(backend, expected)


def test_native_where_it_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="attention: got 'native' with"):
        attention_backend("native", AttentionShape(2, 1, 64), torch.float16, torch.device("cpu"))
