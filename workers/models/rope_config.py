"""The rotary settings of a configuration file, in its old form and its new one."""

from collections.abc import Callable

from workers.layers.rope_scaling import (
    DefaultRope,
    DynamicRope,
    LinearRope,
    Llama3Rope,
    RopeScaling,
    YarnRope,
    yarn_attention_factor,
)
from workers.models.errors import UnsupportedModelError
from workers.models.raw_config import RawConfig
from workers.registry import Registry

DEFAULT_THETA = 10_000.0


def parse_rope(raw: RawConfig) -> RopeScaling:
    """Read `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before).

    Raises UnsupportedModelError for a kind that is not known or a head rotated only in part.
    """
    rope = raw.section("rope_parameters") or raw.section("rope_scaling") or RawConfig({})
    if rope.number("partial_rotary_factor", raw.number("partial_rotary_factor", 1.0)) != 1.0:
        raise UnsupportedModelError("partial_rotary_factor other than 1 is not supported")
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in ROPE_KINDS.names:
        known = ", ".join(ROPE_KINDS.names)
        raise UnsupportedModelError(f"unsupported rope_type {kind!r}; supported: {known}")
    theta = rope.number("rope_theta", raw.number("rope_theta", DEFAULT_THETA))
    return ROPE_KINDS.get(kind)(theta, rope, raw)


def stretched_length(rope: RopeScaling, max_position_embeddings: int) -> int:
    """Tokens that a sequence may have once its rotary scaling is counted in."""
    match rope:
        case LinearRope(factor=factor) | DynamicRope(factor=factor):
            return int(max_position_embeddings * factor)
        case YarnRope(factor=factor, original_max_position_embeddings=original):
            return max(max_position_embeddings, int(original * factor))
        case _:
            return max_position_embeddings


def _default(theta: float, rope: RawConfig, raw: RawConfig) -> RopeScaling:
    return DefaultRope(theta)


def _linear(theta: float, rope: RawConfig, raw: RawConfig) -> RopeScaling:
    return LinearRope(theta, rope.number("factor"))


def _dynamic(theta: float, rope: RawConfig, raw: RawConfig) -> RopeScaling:
    return DynamicRope(theta, rope.number("factor"), raw.integer("max_position_embeddings"))


def _llama3(theta: float, rope: RawConfig, raw: RawConfig) -> RopeScaling:
    return Llama3Rope(
        theta,
        factor=rope.number("factor"),
        low_freq_factor=rope.number("low_freq_factor"),
        high_freq_factor=rope.number("high_freq_factor"),
        original_max_position_embeddings=_original_length(rope, raw),
    )


def _yarn(theta: float, rope: RawConfig, raw: RawConfig) -> RopeScaling:
    original = _original_length(rope, raw)
    factor = rope.number("factor", raw.integer("max_position_embeddings") / original)
    return YarnRope(
        theta,
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=rope.number("attention_factor", _yarn_attention_factor(rope, factor)),
        beta_fast=rope.number("beta_fast", 32.0),
        beta_slow=rope.number("beta_slow", 1.0),
        truncate=rope.flag("truncate", True),
    )


def _yarn_attention_factor(rope: RawConfig, factor: float) -> float:
    mscale, mscale_all_dim = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    if mscale and mscale_all_dim:
        return yarn_attention_factor(factor, mscale) / yarn_attention_factor(factor, mscale_all_dim)
    return yarn_attention_factor(factor)


def _original_length(rope: RawConfig, raw: RawConfig) -> int:
    length = rope.integer(
        "original_max_position_embeddings", raw.integer("max_position_embeddings")
    )
    return raw.integer("original_max_position_embeddings", length)


ROPE_KINDS: Registry[Callable[[float, RawConfig, RawConfig], RopeScaling]] = Registry(
    "rope type",
    {
        "default": _default,
        "linear": _linear,
        "dynamic": _dynamic,
        "llama3": _llama3,
        "yarn": _yarn,
    },
)
