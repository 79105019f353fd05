"""One training run: its plan, its batches, its steps, and how it is kept between runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from ops.models import hf_format
from ops.models.llama import Llama
from ops.models.llama_optimizer import Optimizer
from ops.models.shape import Shape

SEED = 0
STEP_TOKENS = 4096
WARMUP_STEPS = 100
STABLE_FRACTION = 0.75
PEAK_LEARNING_RATE = 4e-3
LENGTHS = ((0.75, 512), (0.97, 1024), (1.0, 2048))
"""Up to which fraction of the run sequences have which length: attention to far tokens is dear."""


@dataclass(frozen=True)
class Plan:
    """How learning rate and sequence length go over `num_steps` steps."""

    num_steps: int

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, level, linear decay to nothing."""
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        left = (self.num_steps - step) / (self.num_steps * (1 - STABLE_FRACTION))
        return PEAK_LEARNING_RATE * min(warm, left, 1.0)

    def length(self, step: int) -> int:
        """Tokens in each sequence of this step."""
        return next(length for until, length in LENGTHS if step < until * self.num_steps)


@dataclass(frozen=True)
class Stream:
    """All training tokens one after another, and where documents begin."""

    ids: npt.NDArray[np.uint16]
    starts: npt.NDArray[np.int64]

    def batch(self, step: int, length: int) -> Tensor:
        """int64 [rows, length + 1], a function of the step alone; some rows begin a document."""
        rng = np.random.default_rng((SEED, step))
        rows = STEP_TOKENS // length
        begins = rng.integers(0, self.starts[-1] - length, size=rows)
        whole = rows // 4 if rows >= 4 else int(rng.random() < 0.25)
        begins[:whole] = self.starts[np.searchsorted(self.starts, begins[:whole])]
        index = np.minimum(begins[:, None] + np.arange(length + 1), len(self.ids) - 1)
        return torch.from_numpy(self.ids[index].astype(np.int64))


@dataclass
class Run:
    """A model in training, and where it keeps itself."""

    model: Llama
    optimizer: Optimizer
    folder: Path
    step: int = 0

    @property
    def state_path(self) -> Path:
        """Where the state lies between runs."""
        return self.folder / "state.pt"

    def resume(self) -> None:
        """Go on from the folder's state, if there is one."""
        if self.state_path.exists():
            state = torch.load(self.state_path, weights_only=True)
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = state["step"]

    def advance(self, loss_of: Callable[[Tensor], Tensor], stream: Stream, plan: Plan) -> float:
        """Take one step, `loss_of` being the model or a compiled form of it; returns the loss."""
        loss = loss_of(stream.batch(self.step, plan.length(self.step)))
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step(plan.learning_rate(self.step))
        self.step += 1
        return loss.item()

    def checkpoint(self, shape: Shape, tokenizer: Tokenizer) -> None:
        """Write the state, and the model as it would ship."""
        torch.save({"step": self.step, "optimizer": self.optimizer.state_dict()}, self.state_path)
        target = self.folder / "model"
        hf_format.write_config(target, shape, tokenizer, "bfloat16")
        save_file(self.model.state_dict(), target / "model.safetensors", {"format": "pt"})


def initial_model(shape: Shape) -> Llama:
    """Random bfloat16 weights; what is added to the residual is scaled down by the depth."""
    model = Llama(shape)
    for parameter_name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            into_residual = "o_proj" in parameter_name or "down_proj" in parameter_name
            std = 0.02 / (2 * shape.num_layers) ** 0.5 if into_residual else 0.02
            torch.nn.init.normal_(parameter, std=std)
    return model.bfloat16()


@torch.no_grad()
def held_out_loss(model: Llama, ids: Tensor, length: int = 512) -> float:
    """Nats a token over int64 [tokens], read in windows of `length` without overlap."""
    windows = ids[: len(ids) // length * length].view(-1, length)
    losses: list[float] = [model(window.unsqueeze(0)).item() for window in windows]
    return sum(losses) / len(losses)
