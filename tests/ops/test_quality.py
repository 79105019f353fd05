"""What quantization changes: the figures against plain arithmetic, and the command's verdict."""

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from cluster.settings import EngineSettings
from ops.cli import app
from ops.failure import CommandError, UsageError
from ops.models import HELD_OUT, resolve
from ops.quality import quality
from ops.quality_divergence import Divergence
from ops.quality_logits import CHUNK_TOKENS, LogitReader
from workers.models.loader import load_model

MODEL = "demo-small"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the built-in text, so that tests are quick."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(HELD_OUT.read_text(encoding="utf-8")[:1500], encoding="utf-8")
    return path


def figures(text: Path, **wishes: str) -> dict[str, float]:
    rows, _ = quality(
        MODEL,
        quantization=wishes.get("quantization"),
        kv_cache_dtype=wishes.get("kv_cache_dtype"),
        text=text,
        max_perplexity_change=None,
    )
    return {row.metric: row.median for row in rows}


def test_divergence_is_what_the_definitions_say() -> None:
    """Taken in by parts, against sums over the whole in float64."""
    original, following = torch.randn(7, 11) * 2, torch.randint(11, (6,))
    changed = original + torch.randn(7, 11) / 3
    seen = Divergence()
    for start, stop in ((0, 3), (3, 7)):
        seen.add(original[start:stop], changed[start:stop], following[start:stop])
    p, q = original.double().softmax(-1), changed.double().softmax(-1)
    assert seen.kl_sum == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4)
    assert seen.logit_max == pytest.approx(float((original - changed).abs().max()))
    assert seen.logit_sum / 7 == pytest.approx(float((original - changed).abs().mean()), rel=1e-5)
    rows = torch.arange(6)
    expected = [float((-model[rows, following].log()).mean().exp()) for model in (p, q)]
    assert seen.perplexities == pytest.approx(expected, rel=1e-5)
    assert seen.perplexity_change == pytest.approx(100 * (expected[1] / expected[0] - 1), rel=1e-3)
    assert (seen.positions, seen.predictions) == (7, 6)


def test_logits_are_those_of_transformers() -> None:
    """Also where a window is read in several steps."""
    ids = list(range(5, 5 + CHUNK_TOKENS + 9))
    theirs = AutoModelForCausalLM.from_pretrained(resolve(MODEL), dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    settings = EngineSettings(dtype="float32")
    model = load_model(resolve(MODEL), torch.float32, "cpu", "sdpa")
    reader = LogitReader(model, settings, len(ids))
    for _ in range(2):
        found = torch.cat(list(reader.read(ids)))
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


def test_an_unchanged_model_does_not_differ(text: Path) -> None:
    found = figures(text)
    assert found["KL divergence"] == pytest.approx(0, abs=1e-6)
    assert found["largest logit difference"] == 0
    assert found["perplexity change"] == 0
    assert found["greedy next token"] == found["greedy continuation"] == 1
    assert found["weights ratio"] == 1


def test_quantized_models_are_close_and_smaller(text: Path) -> None:
    """int8 is closer than int4, which is smaller; an int8 cache changes something, but little."""
    eight = figures(text, quantization="int8")
    four = figures(text, quantization="int4")
    cache = figures(text, kv_cache_dtype="int8")
    assert 0 < cache["KL divergence"] < 0.01
    assert 0 < eight["KL divergence"] < 0.02
    assert eight["KL divergence"] < four["KL divergence"] < 0.5
    assert four["weights ratio"] < eight["weights ratio"] < 1
    assert cache["weights ratio"] == 1
    assert math.isfinite(four["perplexity quantized"])


def test_more_change_than_allowed_fails_the_command(text: Path, tmp_path: Path) -> None:
    """After the figures were told and written."""
    rows = tmp_path / "rows.json"
    wishes = ["--quantization", "int4", "--max-perplexity-change", "0", "--json", str(rows)]
    done = CliRunner().invoke(app, ["quality", MODEL, "--text", str(text), *wishes])
    assert isinstance(done.exception, CommandError)
    assert done.exception.exit_code == 1
    assert "perplexity changes by" in str(done.exception)
    assert "KL divergence" in done.stdout
    assert {row["metric"] for row in json.loads(rows.read_text())} >= {"KL divergence"}


def test_what_is_not_exceeded_is_not_told(text: Path) -> None:
    _, excess = quality(
        MODEL, quantization="int8", kv_cache_dtype=None, text=text, max_perplexity_change=50
    )
    assert excess is None


@pytest.mark.parametrize(
    ("model", "quantization", "content", "error", "message"),
    [
        (MODEL, "int3", "some text", UsageError, "engine.quantization: got 'int3'"),
        ("nope", None, "some text", UsageError, "model: got 'nope'"),
        (MODEL, None, "", UsageError, "expected at least 2"),
        (MODEL, None, None, UsageError, "No such file"),
    ],
)
def test_what_cannot_be_taken_is_named(
    model: str,
    quantization: str | None,
    content: str | None,
    error: type[CommandError],
    message: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(error, match=message):
        quality(
            model,
            quantization=quantization,
            kv_cache_dtype=None,
            text=path,
            max_perplexity_change=None,
        )
