"""OpenVINO GenAI's pipeline of continuous batching."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

from ops.bench.peers.child import main

_STEP_TOKENS = 2048
_BLOCKS = 1024
"""Of 32 tokens each: enough for the largest work."""


class _Streamer(openvino_genai.StreamerBase):  # type: ignore[misc] # its types are unknown
    def __init__(self, on_token: Callable[[], None]) -> None:
        super().__init__()
        self._on_token = on_token

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        self._on_token()
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        pass


class OpenVINO:
    """Options: `model`, a folder made by `convert`, and `threads`."""

    def __init__(self, options: dict[str, Any]) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.num_kv_blocks = _BLOCKS
        scheduler.max_num_batched_tokens = _STEP_TOKENS
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": options["threads"]}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            options["model"], scheduler, "CPU", properties
        )

    def generate(
        self, prompts: list[list[int]], output_tokens: int, on_token: Callable[[], None]
    ) -> list[list[int]]:
        """As the protocol says."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = output_tokens
        config.ignore_eos = True
        config.do_sample = False
        results = self._pipeline.generate(
            [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts],
            [config] * len(prompts),
            _Streamer(on_token) if len(prompts) == 1 else None,
        )
        return [list(result.m_generation_ids[0]) for result in results]


def convert(options: dict[str, Any]) -> None:
    """Write `model` with weights in `format` to `into`, by the command that does all of it."""
    command = Path(sys.executable).with_name("optimum-cli")
    task = ("export", "openvino", "--task", "text-generation-with-past")
    weights = ("--model", options["model"], "--weight-format", options["format"])
    subprocess.run([command, *task, *weights, options["into"]], check=True)


if __name__ == "__main__":
    main(OpenVINO, convert)
