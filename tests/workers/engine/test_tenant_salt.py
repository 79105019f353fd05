"""A tenant finds the prefixes of its own group in the cache, and nobody else's."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from cluster.prefix.block_hash import block_hashes, root_hash
from cluster.tenants import ANONYMOUS, Tenant
from workers.engine.engine import Engine
from workers.engine.llm import LLM
from workers.engine.request import Request
from workers.engine.sampling_params import SamplingParams

PROMPT = list(range(5, 69))
NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,8}", fullmatch=True)
TENANTS = st.one_of(
    st.just(ANONYMOUS),
    st.builds(Tenant, name=NAMES, cache_group=st.none() | NAMES),
)


def hashes(tenant: Tenant, token_ids: list[int]) -> list[bytes]:
    return block_hashes(root_hash("model", 4, salt=tenant.cache_salt), token_ids, 4)


@given(TENANTS, TENANTS, st.lists(st.integers(0, 100), min_size=4, max_size=40))
def test_blocks_have_one_name_in_one_group_only(
    one: Tenant, other: Tenant, token_ids: list[int]
) -> None:
    """Not even tenants of one name, one after the other, share what they did not agree to."""
    grouped = one.cache_group is not None and one.cache_group == other.cache_group
    shared = set(hashes(one, token_ids)) & set(hashes(other, token_ids))
    assert bool(shared) == (one is other or grouped)


def num_cached(engine: Engine, name: str, tenant: Tenant) -> int:
    """Prompt tokens that the engine finds in its cache for a tenant's request."""
    params = SamplingParams(temperature=0.0, max_tokens=2, ignore_eos=True)
    engine.add(Request(name, PROMPT, params, cache_salt=tenant.cache_salt))
    cached = 0
    while engine.has_work:
        for output in engine.step():
            cached += output.started.cached_prompt_tokens if output.started else 0
    engine.check_integrity()
    return cached


def test_a_tenant_gains_nothing_from_what_another_has_asked(
    make_llm: Callable[..., LLM],
) -> None:
    engine = make_llm().engine
    first, second = Tenant(name="a"), Tenant(name="b")
    friends = [Tenant(name=name, cache_group="friends") for name in ("c", "d")]
    assert num_cached(engine, "1", first) == 0
    assert num_cached(engine, "2", first) > 0
    assert num_cached(engine, "3", second) == 0
    assert num_cached(engine, "4", ANONYMOUS) == 0
    assert num_cached(engine, "5", friends[0]) == 0
    assert num_cached(engine, "6", friends[1]) > 0
