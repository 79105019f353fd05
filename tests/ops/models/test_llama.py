"""The model that is trained is the model that transformers loads."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from ops.models.llama import Llama, TiedHeadLoss
from ops.models.shapes import NAMED
from ops.models.training import initial_model

SHAPE = replace(NAMED["demo-small"], vocab_size=300, num_layers=2)


def test_loss_equals_that_of_transformers() -> None:
    torch.manual_seed(0)
    ours = initial_model(SHAPE).float()
    theirs = LlamaForCausalLM(LlamaConfig(**SHAPE.config()))
    theirs.load_state_dict(ours.state_dict(), strict=False)
    theirs.tie_weights()
    ids = torch.randint(SHAPE.vocab_size, (2, 33))
    ours.model.cos, ours.model.sin = ours.model.cos.float(), ours.model.sin.float()
    torch.testing.assert_close(
        ours(ids), theirs(input_ids=ids, labels=ids).loss, rtol=1e-4, atol=1e-4
    )


def test_parameters_are_the_shapes_tensors() -> None:
    parameters = Llama(SHAPE).named_parameters()
    assert [(name, tuple(p.shape)) for name, p in parameters] == list(SHAPE.tensors())


def test_tied_head_loss_and_gradients_equal_cross_entropy() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(20, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(30, (20,))
    expected = F.cross_entropy(hidden @ weight.T, targets)
    expected_slopes = torch.autograd.grad(expected, (hidden, weight))
    loss = TiedHeadLoss.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    slopes = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slopes, expected_slopes)
