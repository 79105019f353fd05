"""A profile of a real engine, from short runs offline."""

from random import Random
from time import perf_counter

from cluster.settings import load_settings
from ops.models import resolve
from ops.simulate.profile import EngineProfile
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams

_PROMPTS = (64, 256, 1024, 4096)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_DECODE_PROMPT = 64
_FEW, _MORE = 4, 20
"""Output tokens of the two runs of which the difference is decoding alone."""
_TRIES = 3


def measure(model: str) -> EngineProfile:
    """The profile of a model, a directory or a shipped one, with the settings of the environment.

    Takes the best of a few tries: what else the machine does makes it only slower. Raises
    UnknownModelError if it is no model.
    """
    settings = load_settings().engine
    with LLM(resolve(model), settings) as llm:
        bench = _Bench(llm)
        longest = llm.engine.max_model_len - _MORE
        prompts = [length for length in _PROMPTS if length < longest] or [longest]
        batches = [count for count in _BATCHES if count <= settings.max_num_seqs]
        bench.seconds(1, prompts[0], 1)  # kernels are built and steps recorded at first use
        return EngineProfile(
            name=model,
            prefill_tokens_per_s={
                length: length / bench.seconds(1, length, 1) for length in prompts
            },
            decode_step_ms={count: bench.decode_ms(count) for count in batches},
            num_blocks=llm.engine.blocks.pool.num_blocks,
            block_size=settings.block_size,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
        )


class _Bench:
    """Times prompts that share nothing."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self._random = Random(0)

    def decode_ms(self, count: int) -> float:
        """A step of so many sequences, none of which reads its prompt any more."""
        few = self.seconds(count, _DECODE_PROMPT, _FEW)
        more = self.seconds(count, _DECODE_PROMPT, _MORE)
        return 1e3 * max(more - few, 1e-6) / (_MORE - _FEW)

    def seconds(self, count: int, prompt_tokens: int, output_tokens: int) -> float:
        """For so many prompts at once, the best of a few tries."""
        params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        ids = range(self._llm.engine.model.config.vocab_size)
        tries = []
        for _ in range(_TRIES):
            prompts = [self._random.choices(ids, k=prompt_tokens) for _ in range(count)]
            begin = perf_counter()
            self._llm.generate(prompts, params)
            tries.append(perf_counter() - begin)
        return min(tries)
