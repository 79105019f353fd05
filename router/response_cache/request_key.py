"""What two requests must have in common to get one answer."""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

from trunkline.v1 import inference_pb2 as pb
from trunkline.v1 import sampling_pb2

from cluster.model_card import ModelCard

_VERSION: Final = b"trunkline answer 1"
_DIGEST_BYTES = 32


def is_repeatable(options: pb.RequestOptions) -> bool:
    """Whether a request would get the same answer again: it is greedy, or has a seed of its own.

    `options` as they came from the client.
    """
    return _is_greedy(options.sampling) or options.sampling.HasField("seed")


def request_key(
    card: ModelCard, token_ids: Sequence[int], options: pb.RequestOptions, cache_salt: bytes
) -> bytes:
    """A keyed BLAKE2b hash of all that an answer depends on; the key is the tenants' salt.

    `options` have been checked and completed (n, max_tokens). Options that mean the same give the
    same hash: one that is absent and its default, lists that are sets in another order, and for
    greedy requests whatever has no effect on them.
    """
    # Salts may be longer than a key of BLAKE2b.
    key = blake2b(cache_salt, digest_size=_DIGEST_BYTES).digest()
    digest = blake2b(key=key, digest_size=_DIGEST_BYTES)
    parts = (
        _VERSION,
        card.name.encode(),
        card.fingerprint.encode(),
        card.precision.encode(),
        array("I", card.eos_token_ids).tobytes(),
        array("I", token_ids).tobytes(),
        _sampling(options.sampling).SerializeToString(deterministic=True),
        _stop(options.stop).SerializeToString(deterministic=True),
        options.logprobs.SerializeToString(deterministic=True),
        str(options.n).encode(),
    )
    for part in parts:
        # With its length, so that nothing moves from one part to the next unseen.
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def scope_of(cache_salt: bytes) -> str:
    """Name of those who may see each other's answers."""
    return blake2b(cache_salt, digest_size=16, person=b"trunkline scope").hexdigest()


def _is_greedy(sampling: sampling_pb2.SamplingParams) -> bool:
    return sampling.HasField("temperature") and sampling.temperature == 0.0


def _sampling(given: sampling_pb2.SamplingParams) -> sampling_pb2.SamplingParams:
    """With the contract's defaults filled in, or left out what the likeliest token is none of."""
    sampling = sampling_pb2.SamplingParams()
    sampling.CopyFrom(given)
    if _is_greedy(given):
        for name in ("top_k", "top_p", "min_p", "seed"):
            sampling.ClearField(name)
        sampling.temperature = 0.0
    else:
        sampling.temperature = given.temperature if given.HasField("temperature") else 1.0
        sampling.top_p = given.top_p if given.HasField("top_p") else 1.0
        sampling.top_k, sampling.min_p = given.top_k, given.min_p
    repetition = given.repetition_penalty if given.HasField("repetition_penalty") else 1.0
    sampling.repetition_penalty = repetition
    sampling.frequency_penalty = given.frequency_penalty
    sampling.presence_penalty = given.presence_penalty
    sampling.allowed_token_ids[:] = sorted(set(given.allowed_token_ids))
    sampling.banned_token_ids[:] = sorted(set(given.banned_token_ids))
    return sampling


def _stop(given: sampling_pb2.StopConditions) -> sampling_pb2.StopConditions:
    stop = sampling_pb2.StopConditions()
    stop.CopyFrom(given)
    stop.stop_token_ids[:] = sorted(set(given.stop_token_ids))
    stop.stop_strings[:] = sorted(set(given.stop_strings))
    return stop
