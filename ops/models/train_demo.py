"""Train a demo model on Python's own text: `python -m ops.models.train_demo demo DIR`.

DIR keeps the state, so that a run can be stopped and started again, and `DIR/model`, the model
in Hugging Face format as of the last checkpoint. The learning rate stays level and falls over
the last part (warm-up, stable, decay), so a run may be given other steps when it is resumed.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tokenizers import Tokenizer

from ops.models.corpus import Corpus, build_corpus, encode
from ops.models.llama_optimizer import Optimizer
from ops.models.shape import Shape
from ops.models.shapes import NAMED
from ops.models.tokens import BOS, train_tokenizer
from ops.models.training import SEED, STEP_TOKENS, Plan, Run, Stream, held_out_loss, initial_model

CHECKPOINT_STEPS = 200


def main(
    name: Annotated[str, typer.Argument(help="demo or demo-small")],
    folder: Annotated[Path, typer.Argument(help="where state and model are kept")],
    steps: Annotated[int, typer.Option(help=f"steps of {STEP_TOKENS} tokens in all")] = 3000,
) -> None:
    """Train the named model; prints one JSON line with the losses at every checkpoint."""
    torch.manual_seed(SEED)
    folder.mkdir(parents=True, exist_ok=True)
    shape = NAMED[name]
    corpus = build_corpus(SEED)
    tokenizer = train_tokenizer(corpus.documents, shape.vocab_size)
    model = initial_model(shape)
    run = Run(model, Optimizer(model), folder)
    run.resume()
    train(run, shape, tokenizer, corpus, Plan(steps))


def train(run: Run, shape: Shape, tokenizer: Tokenizer, corpus: Corpus, plan: Plan) -> None:
    """Step until the plan's end, with a checkpoint now and then and at the end."""
    stream = token_stream(tokenizer, corpus)
    judged = torch.tensor(tokenizer.encode(corpus.held_out).ids)
    loss_of = torch.compile(run.model, dynamic=False)
    recent: list[float] = []
    begun_s = time.monotonic()
    while run.step < plan.num_steps:
        recent.append(run.advance(loss_of, stream, plan))
        if run.step % CHECKPOINT_STEPS == 0 or run.step == plan.num_steps:
            run.checkpoint(shape, tokenizer)
            record = {
                "step": run.step,
                "loss": round(sum(recent) / len(recent), 4),
                "held_out_loss": round(held_out_loss(run.model, judged), 4),
                "elapsed_s": round(time.monotonic() - begun_s),
            }
            print(json.dumps(record), flush=True)
            recent.clear()


def token_stream(tokenizer: Tokenizer, corpus: Corpus) -> Stream:
    """The corpus as token ids."""
    ids = encode(tokenizer, corpus.documents)
    return Stream(ids, np.flatnonzero(ids == tokenizer.token_to_id(BOS)))


if __name__ == "__main__":
    typer.run(main)
