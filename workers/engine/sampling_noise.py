"""Noise for sampling that depends on (seed, sample, position, token) only.

Because it is a function and not a stream, a request draws the same tokens alone or in any batch,
before or after a preemption, on this replica or the next one. The CPU kernels (native/sampling.cpp)
make the same noise, up to the last place of its logarithms.
"""

import struct
from hashlib import blake2b

import torch

_COUNTER = struct.Struct("<QIQ")
_WORDS = struct.Struct("<ii")
_UNIT = 2.0**-31
_ALMOST_ONE = 1 - 2.0**-24


def row_key(seed: int, index: int, position: int) -> bytes:
    """8 bytes for the token at `position` of sample `index`."""
    return blake2b(_COUNTER.pack(seed, index, position), digest_size=8).digest()


def key_words(keys: list[bytes]) -> list[tuple[int, int]]:
    """Each key from `row_key` as two 32-bit words, signed."""
    return [_WORDS.unpack(key) for key in keys]


def gumbel(token_ids: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise for each (row, token).

    Args:
        token_ids: int32 [R, C], or [1, C] for the same tokens in every row.
        keys: int32 [R, 2] from `key_words`.

    Returns:
        float32 [R, C]. Adding it to logits and taking the largest draws from their softmax
        (Gumbel-max; Maddison et al. 2014).
    """
    bits = token_ids * -0x61C88647 ^ keys[:, :1]  # 2**32 divided by the golden ratio, as int32
    bits = _avalanche_(bits)
    bits ^= keys[:, 1:]
    bits = _avalanche_(bits)
    # The noise is large where -log(1 - u) is small: u is near zero, where floats are dense, so that
    # even the unlikeliest tokens come as often as they should.
    uniform = (bits & 0x7FFFFFFF).to(torch.float32).add_(0.5).mul_(_UNIT).clamp_(max=_ALMOST_ONE)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _avalanche_(bits: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finalizer, in place on int32 [R, C]."""
    bits ^= (bits >> 16) & 0xFFFF
    bits *= -0x7A143595
    bits ^= (bits >> 13) & 0x7FFFF
    bits *= -0x3D4D51CB
    bits ^= (bits >> 16) & 0xFFFF
    return bits
