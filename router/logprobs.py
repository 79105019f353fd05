"""Log-probabilities as clients get them."""

from collections.abc import Iterable

from trunkline.v1 import inference_pb2 as pb

from router.text.codec import TextCodec


def add_bytes(logprobs: Iterable[pb.TokenLogprob], codec: TextCodec) -> None:
    """Fill in the bytes of each token, which replicas do not know."""
    for logprob in logprobs:
        logprob.token.text = codec.token_bytes(logprob.token.token_id)
        for candidate in logprob.top:
            candidate.text = codec.token_bytes(candidate.token_id)
