"""Requests of every kind, sensible and not."""

from google.protobuf.duration_pb2 import Duration
from hypothesis import strategies as st
from trunkline.v1 import inference_pb2 as pb
from trunkline.v1 import sampling_pb2

TEXT = st.text(max_size=300)
UINT32 = st.one_of(st.integers(0, 600), st.integers(0, 2**32 - 1))
FLOAT = st.one_of(st.floats(-3, 3, width=32), st.floats(width=32))
TOKEN_IDS = st.lists(UINT32, max_size=6)
DURATION = st.builds(
    Duration,
    seconds=st.one_of(st.integers(-1, 100), st.integers(-(2**63), 2**63 - 1)),
    nanos=st.one_of(st.just(0), st.integers(-(2**31), 2**31 - 1)),
)


def maybe(strategy: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    """Absent more often than not, so that requests get past the first check."""
    return st.one_of(st.none(), st.none(), strategy)


SAMPLING = st.builds(
    sampling_pb2.SamplingParams,
    temperature=maybe(FLOAT),
    top_k=maybe(UINT32),
    top_p=maybe(FLOAT),
    min_p=maybe(FLOAT),
    repetition_penalty=maybe(FLOAT),
    frequency_penalty=maybe(FLOAT),
    presence_penalty=maybe(FLOAT),
    logit_bias=maybe(st.dictionaries(UINT32, FLOAT, max_size=3)),
    allowed_token_ids=maybe(TOKEN_IDS),
    banned_token_ids=maybe(TOKEN_IDS),
    seed=maybe(st.integers(0, 2**64 - 1)),
)
STOP = st.builds(
    sampling_pb2.StopConditions,
    max_tokens=maybe(UINT32),
    min_tokens=maybe(UINT32),
    stop_strings=maybe(st.lists(TEXT, max_size=18)),
    stop_token_ids=maybe(TOKEN_IDS),
    ignore_eos=st.booleans(),
)
LOGPROBS = st.builds(
    sampling_pb2.LogprobsOptions,
    top_logprobs=maybe(st.integers(0, 25)),
    prompt_top_logprobs=maybe(st.integers(0, 25)),
)
OPTIONS = st.builds(
    pb.RequestOptions,
    request_id=maybe(TEXT),
    sampling=maybe(SAMPLING),
    stop=maybe(STOP),
    logprobs=maybe(LOGPROBS),
    n=maybe(st.integers(0, 140)),
    priority=maybe(st.integers(-(2**31), 2**31 - 1)),
    timeout=maybe(DURATION),
    metadata=maybe(st.dictionaries(TEXT, TEXT, max_size=18)),
)
MODEL = st.one_of(st.just(""), st.just("tiny"), TEXT)
MESSAGES = st.lists(
    st.builds(pb.ChatMessage, role=st.one_of(st.just("user"), TEXT), content=TEXT, name=TEXT),
    max_size=4,
)
GENERATE = st.one_of(
    st.builds(pb.GenerateRequest, model=MODEL, prompt=TEXT, options=maybe(OPTIONS)),
    st.builds(
        pb.GenerateRequest,
        model=MODEL,
        token_ids=st.builds(pb.TokenIds, ids=TOKEN_IDS),
        options=maybe(OPTIONS),
    ),
)
CHAT = st.builds(pb.ChatRequest, model=MODEL, messages=MESSAGES, options=maybe(OPTIONS))
TOKENIZE = st.one_of(
    st.builds(pb.TokenizeRequest, model=MODEL, text=TEXT, no_special_tokens=st.booleans()),
    st.builds(
        pb.TokenizeRequest, model=MODEL, messages=st.builds(pb.ChatMessages, messages=MESSAGES)
    ),
)
DETOKENIZE = st.builds(pb.DetokenizeRequest, model=MODEL, token_ids=TOKEN_IDS)
