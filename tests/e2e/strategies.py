"""Requests whose every value is in its range, so that all of them reach an engine."""

from hypothesis import strategies as st
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1 import sampling_pb2

VOCABULARY_SIZE = 4096

_TOKEN_ID = st.integers(3, VOCABULARY_SIZE - 1)
_TOKEN_IDS = st.lists(_TOKEN_ID, max_size=5, unique=True)
_ODD_IDS = _TOKEN_IDS.map(lambda ids: [i | 1 for i in ids])
_EVEN_IDS = _TOKEN_IDS.map(lambda ids: [i & ~1 for i in ids])


def _floats(least: float, most: float) -> st.SearchStrategy[float | None]:
    within = st.floats(least, most, width=32)
    return st.one_of(st.none(), within, st.sampled_from([least, most]))


SAMPLING = st.builds(
    sampling_pb2.SamplingParams,
    temperature=_floats(0, 100),
    top_k=st.one_of(st.none(), st.integers(0, 2 * VOCABULARY_SIZE)),
    top_p=_floats(2**-149, 1),
    min_p=_floats(0, 1),
    repetition_penalty=_floats(2**-9, 10),
    frequency_penalty=_floats(-2, 2),
    presence_penalty=_floats(-2, 2),
    logit_bias=st.dictionaries(_TOKEN_ID, st.floats(-100, 100, width=32), max_size=3),
    allowed_token_ids=st.one_of(st.none(), _ODD_IDS),
    # Never what is allowed, nor what ends a sample: a request that leaves nothing is refused.
    banned_token_ids=st.one_of(st.none(), _EVEN_IDS),
    seed=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
STOP = st.builds(
    sampling_pb2.StopConditions,
    max_tokens=st.integers(1, 12),
    min_tokens=st.one_of(st.none(), st.integers(0, 1)),
    stop_strings=st.lists(st.text(min_size=1, max_size=3), max_size=3),
    stop_token_ids=_EVEN_IDS,
    ignore_eos=st.booleans(),
)
LOGPROBS = st.builds(
    sampling_pb2.LogprobsOptions,
    top_logprobs=st.one_of(st.none(), st.integers(0, 20)),
    prompt_top_logprobs=st.one_of(st.none(), st.integers(0, 20)),
)
OPTIONS = st.builds(
    pb.RequestOptions,
    sampling=SAMPLING,
    stop=STOP,
    logprobs=LOGPROBS,
    n=st.integers(0, 4),
    priority=st.integers(-100, 100),
)
IN_RANGE = st.builds(
    pb.GenerateRequest,
    token_ids=st.builds(pb.TokenIds, ids=st.lists(_TOKEN_ID, min_size=1, max_size=100)),
    options=OPTIONS,
)
