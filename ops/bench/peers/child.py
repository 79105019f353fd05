"""The side of an engine's own process: requests in on standard input, answers out on a pipe.

Standard library only. A request is a line `{"prompts": [[id, ...], ...], "output_tokens": n}`, an
answer a line `{"token_ids": ..., "seconds": s, "first_s": s or null}` or `{"error": "..."}`. The
pipe is private because engines write to standard output as they please.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

_PR_SET_PDEATHSIG = 1
_SHOWN_CHARACTERS = 300


class Engine(Protocol):
    """A loaded model."""

    def generate(
        self, prompts: list[list[int]], output_tokens: int, on_token: Callable[[], None]
    ) -> list[list[int]]:
        """The `output_tokens` likeliest tokens after each prompt, past any end of sequence.

        With one prompt, calls `on_token` when a token is there, if the engine can tell.
        """


def main(
    load: Callable[[dict[str, Any]], Engine],
    convert: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Load with the options of the command line, then answer until standard input ends.

    Arguments: the pipe's file descriptor, or "convert" to make a model in the engine's form; and
    the options as JSON.
    """
    _die_with_parent()
    if sys.argv[1] == "convert" and convert is not None:
        convert(json.loads(sys.argv[2]))
        return
    descriptor, options = int(sys.argv[1]), json.loads(sys.argv[2])
    with os.fdopen(descriptor, "w", buffering=1) as answers:
        try:
            engine = load(options)
            for line in sys.stdin:
                answers.write(json.dumps(_answer(engine, json.loads(line))) + "\n")
        except Exception as error:
            answers.write(json.dumps({"error": _in_one_line(error)}) + "\n")
            raise


def _answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    tokens_s: list[float] = []
    start_s = perf_counter()
    token_ids = engine.generate(
        request["prompts"], request["output_tokens"], lambda: tokens_s.append(perf_counter())
    )
    seconds = perf_counter() - start_s
    first_s = tokens_s[0] - start_s if tokens_s else None
    return {"token_ids": token_ids, "seconds": seconds, "first_s": first_s}


def _die_with_parent() -> None:
    """Even when stopped by a signal, as it is when its turn has passed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_SHOWN_CHARACTERS]
