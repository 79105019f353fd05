"""What the engine checks before it takes a request."""

from collections.abc import Iterable

from cluster.errors import invalid
from cluster.settings import EngineSettings
from workers.engine.kv_blocks import KVBlocks
from workers.engine.request import Request
from workers.engine.sampling_params import SamplingParams
from workers.models.config import ModelConfig

_LAST_INDEX = 2**31 - 1
"""What draws have room for, and more than any request has samples."""


class Intake:
    """Refuses requests that could never be served; what passes can be, given time."""

    def __init__(
        self, blocks: KVBlocks, config: ModelConfig, settings: EngineSettings, max_model_len: int
    ) -> None:
        self._blocks = blocks
        self._vocab_size = config.vocab_size
        self._eos_token_ids = config.eos_token_ids
        self._max_num_seqs = settings.max_num_seqs
        self._step_tokens = settings.max_num_batched_tokens
        self._max_model_len = max_model_len

    def max_output(self, request: Request) -> int:
        """The tokens that each sample may have. Raises RequestError (INVALID_ARGUMENT)."""
        params = request.params
        self._check_tokens("prompt_token_ids", request.prompt_token_ids)
        self._check_tokens("logit_bias", params.logit_bias)
        self._check_tokens("allowed_token_ids", params.allowed_token_ids)
        self._check_tokens("banned_token_ids", params.banned_token_ids)
        self._check_tokens("stop_token_ids", params.stop_token_ids)
        self._check_choice(params)
        if params.n > self._max_num_seqs:
            raise invalid("n", params.n, f"at most {self._max_num_seqs} samples at a time")
        self._check_generated(request)
        self._check_embed(request)
        max_output = self._output_room(request)
        if request.num_generated >= max_output:
            accepted = f"fewer than the {max_output} tokens that a sample may have"
            raise invalid("num_generated", request.num_generated, accepted)
        return max_output

    def _check_generated(self, request: Request) -> None:
        """A request that goes on here is one sample's, and its prompt is not scored again."""
        num_generated, params = request.num_generated, request.params
        if not 0 <= request.first_index <= _LAST_INDEX:
            raise invalid("first_index", request.first_index, f"an index up to {_LAST_INDEX}")
        if not num_generated:
            return
        if not 0 < num_generated < len(request.prompt_token_ids):
            accepted = f"fewer than the {len(request.prompt_token_ids)} tokens that were sent"
            raise invalid("num_generated", num_generated, accepted)
        if params.n != 1:
            raise invalid("n", params.n, "1 sample where tokens have been generated")
        if params.prompt_top_logprobs is not None:
            accepted = "nothing where tokens have been generated"
            raise invalid("prompt_top_logprobs", params.prompt_top_logprobs, accepted)

    def _check_embed(self, request: Request) -> None:
        """Nothing is sampled for an embedding, which is of a prompt that a client sent."""
        params = request.params
        if not request.embed:
            return
        if params.n != 1:
            raise invalid("n", params.n, "1 where an embedding is asked for")
        if request.num_generated:
            accepted = "0 where an embedding is asked for"
            raise invalid("num_generated", request.num_generated, accepted)
        if params.prompt_top_logprobs is not None:
            accepted = "nothing where an embedding is asked for"
            raise invalid("prompt_top_logprobs", params.prompt_top_logprobs, accepted)

    def _output_room(self, request: Request) -> int:
        num_prompt = len(request.prompt_token_ids) - request.num_generated
        limit = self._max_model_len
        room = limit - num_prompt
        if not num_prompt or room < 1:
            raise invalid("prompt", f"{num_prompt} tokens", f"1 to {limit - 1} tokens")
        wanted = 1 if request.embed else request.params.max_tokens
        max_output = room if wanted is None else wanted
        if max_output > room:
            accepted = f"at most {room} beside {num_prompt} prompt tokens (context of {limit})"
            raise invalid("max_tokens", max_output, accepted)
        needed = self._blocks.peak_blocks(num_prompt + max_output, self._step_tokens)
        total = self._blocks.pool.num_blocks
        if needed > total:
            accepted = f"at most {total * self._blocks.block_size}, the size of the KV cache"
            raise invalid("prompt and max_tokens", num_prompt + max_output, accepted)
        return max_output

    def _check_choice(self, params: SamplingParams) -> None:
        """At every moment there must be a token to draw."""
        banned = set(params.banned_token_ids)
        if params.min_tokens:
            banned.update(params.stop_token_ids, () if params.ignore_eos else self._eos_token_ids)
        allowed = set(params.allowed_token_ids) or range(self._vocab_size)
        if len(banned) >= len(allowed) and banned.issuperset(allowed):
            accepted = "a token that is allowed, not banned, and ends nothing before min_tokens"
            raise invalid("banned_token_ids", f"{len(banned)} tokens", accepted)

    def _check_tokens(self, name: str, token_ids: Iterable[int]) -> None:
        bad = next((t for t in token_ids if not 0 <= t < self._vocab_size), None)
        if bad is not None:
            raise invalid(name, bad, f"token ids in [0, {self._vocab_size})")
