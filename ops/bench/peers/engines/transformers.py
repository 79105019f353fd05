"""Hugging Face transformers: `generate`, and continuous batching."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from ops.bench.peers.child import Engine, main

_PAGE_TOKENS = 64
_PAGES = 512
_STEP_TOKENS = 2048


class _Streamer:
    """What `generate` calls with the prompt first, and then with each token."""

    def __init__(self, on_token: Callable[[], None]) -> None:
        self._on_token = on_token
        self._prompt_seen = False

    def put(self, value: torch.Tensor) -> None:
        if self._prompt_seen:
            self._on_token()
        self._prompt_seen = True

    def end(self) -> None:
        pass


class Generate:
    """One static batch. Options: `model` and `dtype`."""

    def __init__(self, options: dict[str, Any]) -> None:
        dtype = getattr(torch, options["dtype"])
        self._model: Any = AutoModelForCausalLM.from_pretrained(options["model"], dtype=dtype)

    @torch.inference_mode()
    def generate(
        self, prompts: list[list[int]], output_tokens: int, on_token: Callable[[], None]
    ) -> list[list[int]]:
        """As the protocol says."""
        ids = torch.tensor(prompts)
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=output_tokens,
            min_new_tokens=output_tokens,
            do_sample=False,
            pad_token_id=0,
            streamer=_Streamer(on_token) if len(prompts) == 1 else None,
        )
        token_ids: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return token_ids


class ContinuousBatching:
    """Paged KV and a scheduler, kept between calls. Options: `model` and `dtype`."""

    def __init__(self, options: dict[str, Any]) -> None:
        model: Any = AutoModelForCausalLM.from_pretrained(
            options["model"], dtype=getattr(torch, options["dtype"]), attn_implementation="sdpa"
        )
        greedy: dict[str, Any] = {"do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
        self._manager = model.init_continuous_batching(
            generation_config=GenerationConfig(**greedy),  # type: ignore[no-untyped-call]
            # By default the cache takes nearly all memory, and its size is found by using it.
            continuous_batching_config=ContinuousBatchingConfig(
                page_size=_PAGE_TOKENS,
                num_blocks=_PAGES,
                max_batch_tokens=_STEP_TOKENS,
                use_cuda_graph=False,
            ),
        )
        self._manager.start()

    def generate(
        self, prompts: list[list[int]], output_tokens: int, on_token: Callable[[], None]
    ) -> list[list[int]]:
        """As the protocol says; does not tell when single tokens are there."""
        names = self._manager.add_requests(inputs=prompts, max_new_tokens=output_tokens)
        finished: dict[str, list[int]] = {}
        while len(finished) < len(prompts):
            result = self._manager.get_result(timeout=1)
            if result is None:
                if not self._manager.is_running():
                    raise RuntimeError("the thread of the continuous batching manager ended")
            elif result.error:
                raise RuntimeError(result.error)
            elif result.is_finished():
                finished[result.request_id] = list(result.generated_tokens)
        return [finished[name] for name in names]


def _load(options: dict[str, Any]) -> Engine:
    kinds: dict[str, type[Generate] | type[ContinuousBatching]] = {
        "generate": Generate,
        "continuous": ContinuousBatching,
    }
    return kinds[options["api"]](options)


if __name__ == "__main__":
    main(_load)
