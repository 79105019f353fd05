"""Our engine, without a cluster."""

from collections.abc import Callable
from typing import Any

from cluster.settings import EngineSettings
from ops.bench.peers.child import main
from workers.engine.llm import LLM
from workers.engine.request import Request
from workers.engine.sampling_params import SamplingParams


class Trunkline:
    """Options: `model`, `threads`, and `settings` as EngineSettings takes them."""

    def __init__(self, options: dict[str, Any]) -> None:
        settings = EngineSettings(num_threads=options["threads"], **options["settings"])
        self._llm = LLM(options["model"], settings)
        self._asked = 0

    def generate(
        self, prompts: list[list[int]], output_tokens: int, on_token: Callable[[], None]
    ) -> list[list[int]]:
        """As the protocol says."""
        params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        if len(prompts) > 1:
            completions = self._llm.generate(prompts, params)
            return [completion.samples[0].token_ids for completion in completions]
        self._asked += 1
        engine = self._llm.engine
        engine.add(Request(f"single-{self._asked}", prompts[0], params))
        token_ids: list[int] = []
        while engine.has_work:
            for output in engine.step():
                token_ids += output.token_ids
                on_token()
        return [token_ids]


if __name__ == "__main__":
    main(Trunkline)
