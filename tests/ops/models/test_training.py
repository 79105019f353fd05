"""Training follows its plan, learns, and goes on where it was stopped."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from ops.models import training
from ops.models.corpus import Corpus
from ops.models.llama_optimizer import Optimizer
from ops.models.shapes import NAMED
from ops.models.tokens import train_tokenizer
from ops.models.train_demo import token_stream
from ops.models.training import (
    PEAK_LEARNING_RATE,
    STEP_TOKENS,
    Plan,
    Run,
    held_out_loss,
    initial_model,
)

SHAPE = replace(
    NAMED["demo-small"], hidden_size=32, intermediate_size=64, num_layers=1, vocab_size=300
)
TEXT = "<|bos|>" + "The quick brown fox jumps over the lazy dog. " * 400 + "<|end|>"
CORPUS = Corpus(documents=(TEXT,) * 4, held_out=TEXT[: len(TEXT) // 2])
TOKENIZER = train_tokenizer([TEXT], SHAPE.vocab_size)
STREAM = token_stream(TOKENIZER, CORPUS)
PLAN = Plan(100)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is learned from fewer tokens is enough to see."""
    monkeypatch.setattr(training, "STEP_TOKENS", 1024)


def new_run(folder: Path) -> Run:
    torch.manual_seed(0)
    model = initial_model(SHAPE)
    return Run(model, Optimizer(model), folder)


def advance(run: Run, steps: int) -> list[float]:
    return [run.advance(run.model, STREAM, PLAN) for _ in range(steps)]


@given(st.integers(1, 20_000))
def test_the_plan_warms_up_stays_and_falls(num_steps: int) -> None:
    plan = Plan(num_steps)
    steps = range(0, num_steps, max(1, num_steps // 50))
    assert all(0 < plan.learning_rate(step) <= PEAK_LEARNING_RATE for step in steps)
    lengths = [plan.length(step) for step in steps]
    assert lengths == sorted(lengths)


@pytest.mark.parametrize("length", [512, 1024, 2048])
def test_batches_are_stretches_of_the_stream(length: int) -> None:
    batch = STREAM.batch(3, length)
    assert batch.shape == (STEP_TOKENS // length, length + 1)
    assert torch.equal(batch, STREAM.batch(3, length))
    text = STREAM.ids.astype("<u2").tobytes()
    assert all(row.numpy().astype("<u2").tobytes() in text for row in batch)


@pytest.mark.usefixtures("small_steps")
def test_training_learns(tmp_path: Path) -> None:
    losses = advance(new_run(tmp_path), 20)
    assert losses[-1] < losses[0] - 0.2


@pytest.mark.usefixtures("small_steps")
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = new_run(tmp_path / "whole")
    advance(whole, 6)
    first = new_run(tmp_path)
    advance(first, 3)
    first.checkpoint(SHAPE, TOKENIZER)
    second = new_run(tmp_path)
    second.resume()
    advance(second, 3)
    assert second.step == whole.step
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(parameter, second.model.state_dict()[name]), name


def test_a_checkpoint_is_a_model_that_transformers_loads(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    run.checkpoint(SHAPE, TOKENIZER)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    for name, parameter in run.model.named_parameters():
        assert torch.equal(loaded.state_dict()[name], parameter), name


def test_held_out_loss_of_an_untrained_model_is_that_of_guessing(tmp_path: Path) -> None:
    ids = torch.from_numpy(STREAM.ids[:2048].astype("int64"))
    assert held_out_loss(new_run(tmp_path).model, ids) == pytest.approx(
        math.log(SHAPE.vocab_size), rel=0.05
    )
