"""Which scheme each layer gets, and how a model is loaded with it."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from cluster.settings import EngineSettings
from tests.golden.driver import Driver
from tests.golden.models import CASES, save_random
from workers.models.causal_lm import CausalLM
from workers.models.loader import load_model
from workers.quantization.plan import QuantizationPlan
from workers.quantization.quantized_weight import QuantizedWeight

BY_ID = {case.id: case for case in CASES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    save_random(BY_ID["llama-tied"], path)
    return path


def load(folder: Path, **settings: object) -> CausalLM:
    plan = QuantizationPlan.of(EngineSettings.model_validate(settings))
    return load_model(folder, torch.float32, "cpu", "reference", plan=plan)


def test_the_last_pattern_that_matches_holds() -> None:
    plan = QuantizationPlan("int4", 32, {"*.down_proj": "int8", "model.layers.0.*": "none"})
    schemes = [plan.scheme_of(f"model.layers.{i}.mlp.down_proj") for i in (0, 1)]
    assert schemes == ["none", "int8"]
    assert plan.scheme_of("model.layers.1.mlp.up_proj") == "int4"


def test_the_head_is_int8_beside_int4_unless_told_otherwise() -> None:
    assert QuantizationPlan("int4").scheme_of("lm_head") == "int8"
    assert QuantizationPlan("int4", 32, {"lm_head": "int4"}).scheme_of("lm_head") == "int4"
    assert QuantizationPlan("int8_weight_only").scheme_of("lm_head") == "int8_weight_only"


@pytest.mark.parametrize(
    ("scheme", "bits", "activations"),
    [("int8", 8, "int8"), ("int8_weight_only", 8, "none"), ("int4", 4, "int8")],
)
def test_schemes_name_weights_and_activations(scheme: str, bits: int, activations: str) -> None:
    settings = EngineSettings.model_validate({"quantization": scheme})
    weight = QuantizationPlan.of(settings).apply("x", torch.randn(4, 64))
    assert isinstance(weight, QuantizedWeight)
    assert (weight.bits, weight.activations) == (bits, activations)


def test_a_pattern_that_matches_nothing_is_named(folder: Path) -> None:
    with pytest.raises(
        ValueError, match=r"overrides: got '\*\.donw_proj', .* such as model\.layer"
    ):
        load(folder, quantization_overrides={"lm_head": "int8", "*.donw_proj": "int8"})


def test_inputs_that_do_not_divide_into_groups_are_named(folder: Path) -> None:
    message = r"quantization_group_size: got 32, .* the 80 inputs of model\.layers\.0\.mlp\.down"
    with pytest.raises(ValueError, match=message):
        load(folder, quantization="int4")


def test_schemes_that_do_not_exist_are_named() -> None:
    with pytest.raises(ValidationError, match="quantization_overrides"):
        EngineSettings.model_validate({"quantization_overrides": {"lm_head": "int3"}})


@pytest.mark.parametrize(
    ("settings", "largest_error"),
    [
        ({"quantization": "int8"}, 0.05),
        ({"quantization": "int4", "quantization_overrides": {"*.down_proj": "int8"}}, 0.4),
        ({"quantization": "int8", "quantization_overrides": {"*.k_proj": "none"}}, 0.05),
    ],
    ids=["int8", "int4", "mixed"],
)
def test_a_quantized_model_is_smaller_and_close(
    folder: Path, settings: dict[str, object], largest_error: float
) -> None:
    """Also where layers that are one product otherwise are of different kinds."""
    plain, quantized = load(folder), load(folder, **settings)
    assert quantized.weight_bytes < plain.weight_bytes
    assert plain.embedding is not None
    assert quantized.embedding is not None
    assert torch.equal(quantized.embedding, plain.embedding)
    exact, found = (Driver(model, 16, 16).feed([5, 9, 1, 7]) for model in (plain, quantized))
    assert 0 < float((found - exact).norm() / exact.norm()) < largest_error


def test_bytes_are_counted_as_kept(folder: Path) -> None:
    """int8: a byte and a share of a scale for each weight, and a second table for a tied head."""
    quantized = load(folder, quantization="int8")
    embedding, norms = 199 * 96 * 4, 7 * 96 * 4
    modules = [(96, 96), (32, 96), (32, 96), (96, 96), (80, 96), (80, 96), (96, 80)] * 3
    linear = sum(outputs * (inputs + 4) for outputs, inputs in [*modules, (199, 96)])
    assert quantized.weight_bytes == embedding + norms + linear
