"""llama.cpp, through llama-cpp-python's bindings of its C functions."""

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp

from ops.bench.peers.child import main
from ops.bench.peers.engines.llama_cpp_convert import write_gguf

_STEP_TOKENS = 2048
_SINGLE_TOKENS = 2048
_FILE = "model.gguf"
_FILE_TYPES = {
    "q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}


class _Token(NamedTuple):
    token_id: int
    position: int
    sequence: int
    is_last: bool
    """Whether the token after it is wanted."""


class _Context:
    """Keys and values of some sequences, each with room of its own."""

    def __init__(self, model: Any, sequences: int, tokens: int, threads: int) -> None:
        params = llama_cpp.llama_context_default_params()
        params.n_seq_max = sequences
        params.n_ctx = sequences * tokens
        params.n_batch = _STEP_TOKENS
        params.n_threads = params.n_threads_batch = threads
        self.sequences, self.tokens = sequences, tokens
        self._context = llama_cpp.llama_init_from_model(model, params)
        if not self._context:
            raise RuntimeError(f"no context for {sequences} sequences of {tokens} tokens")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(_STEP_TOKENS, 0, 1)
        self._greedy = llama_cpp.llama_sampler_init_greedy()

    def forget(self, sequence: int, begin: int) -> None:
        """Drop what a sequence has from a position on."""
        llama_cpp.llama_memory_seq_rm(self._memory, sequence, begin, -1)

    def step(self, tokens: Sequence[_Token]) -> list[int]:
        """The likeliest token after each last one. Raises RuntimeError."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token.token_id
            batch.pos[index] = token.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = token.sequence
            batch.logits[index] = token.is_last
        code = llama_cpp.llama_decode(self._context, batch)
        if code:
            raise RuntimeError(f"llama_decode: {code}")
        return [
            llama_cpp.llama_sampler_sample(self._greedy, self._context, index)
            for index, token in enumerate(tokens)
            if token.is_last
        ]

    def close(self) -> None:
        """Free it."""
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)


class LlamaCpp:
    """Options: `model`, a folder made by `convert`, and `threads`."""

    def __init__(self, options: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        path = str(Path(options["model"]) / _FILE).encode()
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(path, params)
        if not self._model:
            raise RuntimeError("the model cannot be loaded")
        self._threads = options["threads"]
        self._single = _Context(self._model, 1, _SINGLE_TOKENS, self._threads)
        self._kept: list[int] = []
        """Tokens whose keys and values `_single` has."""
        self._many: _Context | None = None

    def generate(
        self, prompts: list[list[int]], output_tokens: int, on_token: Callable[[], None]
    ) -> list[list[int]]:
        """As the protocol says. Like its server, it keeps the last single prompt's prefix."""
        if len(prompts) > 1:
            tokens = max(map(len, prompts)) + output_tokens
            return _generate(self._context(len(prompts), tokens), prompts, 0, output_tokens)
        [prompt] = prompts
        known = _common(self._kept, prompt[:-1])
        self._single.forget(0, known)
        [output] = _generate(self._single, prompts, known, output_tokens, on_token)
        self._kept = prompt + output[:-1]
        return [output]

    def _context(self, sequences: int, tokens: int) -> _Context:
        """An empty context that is large enough."""
        kept = self._many
        if kept is None or kept.sequences < sequences or kept.tokens < tokens:
            if kept is not None:
                kept.close()
            kept = self._many = _Context(self._model, sequences, tokens, self._threads)
        for sequence in range(kept.sequences):
            kept.forget(sequence, 0)
        return kept


def convert(options: dict[str, Any]) -> None:
    """Write `model` in `format` to `into`; llama.cpp itself quantizes."""
    folder = Path(options["into"])
    folder.mkdir(parents=True)
    target = folder / _FILE
    if options["format"] == "bf16":
        write_gguf(Path(options["model"]), target)
        return
    source = folder / "bf16.gguf"
    write_gguf(Path(options["model"]), source)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = _FILE_TYPES[options["format"]]
    code = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(params)
    )
    source.unlink()
    if code:
        raise RuntimeError(f"llama_model_quantize: {code}")


def _generate(
    context: _Context,
    prompts: list[list[int]],
    known: int,
    output_tokens: int,
    on_token: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """All prompts in steps that are as full as can be, then all sequences together."""
    pending = [
        _Token(token_id, position, sequence, position == len(prompt) - 1)
        for sequence, prompt in enumerate(prompts)
        for position, token_id in enumerate(prompt)
        if position >= known
    ]
    latest: list[int] = []
    for begin in range(0, len(pending), _STEP_TOKENS):
        latest += context.step(pending[begin : begin + _STEP_TOKENS])
    on_token()
    outputs = [[token_id] for token_id in latest]
    for made in range(output_tokens - 1):
        latest = context.step(
            [
                _Token(token_id, len(prompt) + made, sequence, is_last=True)
                for sequence, (prompt, token_id) in enumerate(zip(prompts, latest, strict=True))
            ]
        )
        on_token()
        for output, token_id in zip(outputs, latest, strict=True):
            output.append(token_id)
    return outputs


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    for index, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return index
    return min(len(one), len(other))


if __name__ == "__main__":
    main(LlamaCpp, convert)
