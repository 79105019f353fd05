"""vLLM, through its offline class."""

from collections.abc import Callable
from typing import Any

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt

from ops.bench.peers.child import main


class VLLM:
    """Options: `model`, and `arguments` of vLLM's `LLM`."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._llm = LLM(model=options["model"], **options["arguments"])
        self._asked = 0

    def generate(
        self, prompts: list[list[int]], output_tokens: int, on_token: Callable[[], None]
    ) -> list[list[int]]:
        """As the protocol says."""
        params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        if len(prompts) > 1:
            requests = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts]
            outputs = self._llm.generate(requests, params, use_tqdm=False)
            return [list(output.outputs[0].token_ids) for output in outputs]
        self._asked += 1
        engine = self._llm.llm_engine
        prompt = TokensPrompt(prompt_token_ids=prompts[0])
        engine.add_request(f"single-{self._asked}", prompt, params)
        token_ids: list[int] = []
        while engine.has_unfinished_requests():
            for output in engine.step():
                token_ids = list(output.outputs[0].token_ids)
                on_token()
        return [token_ids]


if __name__ == "__main__":
    main(VLLM)
