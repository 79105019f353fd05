"""Kernels of a step: all that decoder layers take, and measuring them changes nothing."""

import pytest

from cluster.settings import EngineSettings
from ops.bench.kernels import bench_kernels
from ops.models import resolve
from workers.engine.llm import LLM
from workers.engine.sampling_params import SamplingParams
from workers.kernels.library import load_library

PARAMS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


@pytest.mark.skipif(load_library() is None, reason="needs the CPU kernels")
def test_rows_name_the_kernels_of_decodes_and_of_a_prompt() -> None:
    settings = EngineSettings(dtype="float32", kv_cache_bytes=2**27, num_threads=1)
    llm = LLM(resolve("demo-small"), settings)
    before = llm.generate([[5, 6, 7]], PARAMS)[0].samples[0].token_ids
    rows = bench_kernels(llm, "demo-small", 2)
    works = {row.work for row in rows}
    assert len(works) == 4
    for work in works:
        kernels = {row.metric for row in rows if row.work == work}
        assert {"add_rms_norm", "write_heads", "attend", "linear_float32"} <= kernels
    assert llm.generate([[5, 6, 7]], PARAMS)[0].samples[0].token_ids == before
