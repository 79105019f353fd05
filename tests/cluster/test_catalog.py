"""What the catalog takes, and what it does not."""

import asyncio

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis

from cluster.catalog import Alias, CatalogError, CatalogStore, Entry, Fallback, Split, parse_entry
from cluster.registry import Registry
from tests.tokenizers_fixture import byte_level_tokenizer, model_card

CARD = model_card(byte_level_tokenizer())


@pytest.fixture
async def store(redis: Redis, namespace: str) -> CatalogStore:
    """A catalog of a cluster with the models a and b."""
    registry = Registry(redis, namespace)
    for name in "ab":
        await registry.publish_model(CARD.model_copy(update={"name": name}))
    return CatalogStore(redis, namespace)


@pytest.mark.parametrize(
    "entry",
    [Alias(target="a"), Split(weights={"a": 9, "b": 1}), Fallback(chain=("b", "a"))],
)
async def test_what_was_entered_is_read(store: CatalogStore, entry: Entry) -> None:
    await store.put("name", entry)
    assert await store.entries() == {"name": entry}
    await store.remove("name")
    assert await store.entries() == {}


@pytest.mark.parametrize(
    "text",
    [
        b'{"kind": "split", "weights": {}}',
        b'{"kind": "split", "weights": {"a": 0}}',
        b'{"kind": "split", "weights": {"a": -1}}',
        b'{"kind": "split", "weights": {"a": "nan"}}',
        b'{"kind": "fallback", "chain": ["a"]}',
        b'{"kind": "fallback", "chain": ["a", "a"]}',
        b'{"kind": "alias", "target": ""}',
        b'{"kind": "alias", "target": "a", "more": 1}',
        b'{"kind": "other"}',
        b"",
    ],
)
def test_what_is_no_entry_is_refused(text: bytes) -> None:
    with pytest.raises(ValidationError):
        parse_entry(text)


async def test_unknown_targets_are_refused_unless_they_are_to_come(store: CatalogStore) -> None:
    with pytest.raises(CatalogError, match="'c' is neither a model nor a name"):
        await store.put("name", Fallback(chain=("a", "c")))
    await store.put("name", Fallback(chain=("a", "c")), allow_unknown=True)
    await store.put("other", Alias(target="name"))


async def test_a_name_that_means_itself_is_known_only_if_it_is_a_model(
    store: CatalogStore,
) -> None:
    await store.put("a", Split(weights={"a": 9, "b": 1}))
    with pytest.raises(CatalogError, match="'c' is neither"):
        await store.put("c", Split(weights={"c": 9, "b": 1}))


async def test_circles_are_refused(store: CatalogStore) -> None:
    await store.put("x", Alias(target="a"))
    await store.put("y", Alias(target="x"))
    with pytest.raises(CatalogError, match="x -> y -> x: goes in a circle"):
        await store.put("x", Alias(target="y"))
    assert (await store.entries())["x"] == Alias(target="a")


async def test_what_others_refer_to_stays(store: CatalogStore) -> None:
    await store.put("x", Alias(target="a"))
    await store.put("y", Fallback(chain=("b", "x")))
    with pytest.raises(CatalogError, match="'x' is used by: y"):
        await store.remove("x")
    await store.remove("y")
    await store.remove("x")


async def test_an_entry_before_a_model_may_go_as_the_model_stays(store: CatalogStore) -> None:
    await store.put("a", Fallback(chain=("a", "b")))
    await store.put("x", Alias(target="a"))
    await store.remove("a")
    assert await store.entries() == {"x": Alias(target="a")}


async def test_removing_what_is_not_there_tells_what_is(store: CatalogStore) -> None:
    await store.put("x", Alias(target="a"))
    with pytest.raises(CatalogError, match="'z' is not in the catalog; there are: x"):
        await store.remove("z")


async def test_of_two_changes_that_make_a_circle_together_one_is_refused(
    store: CatalogStore,
) -> None:
    for name, target in (("x", "a"), ("y", "b")):
        await store.put(name, Alias(target=target))
    outcomes = await asyncio.gather(
        store.put("x", Alias(target="y")),
        store.put("y", Alias(target="x")),
        return_exceptions=True,
    )
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["CatalogError", "NoneType"]
