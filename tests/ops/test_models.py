"""Operators give models names, share them out and chain them."""

import asyncio
import json
from collections.abc import Callable

import pytest

from cluster.redis_client import connect
from cluster.registry import Registry
from ops.cli import _run
from tests.redis_server import RedisServer
from tests.tokenizers_fixture import byte_level_tokenizer, model_card

Command = Callable[..., str]


@pytest.fixture
def command(
    redis_server: RedisServer, namespace: str, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Runs `trunkline models` on a cluster with the models v1 and v2."""

    async def publish() -> None:
        card = model_card(byte_level_tokenizer())
        async with connect(redis_server.url) as redis:
            for name in ("v1", "v2"):
                await Registry(redis, namespace).publish_model(
                    card.model_copy(update={"name": name})
                )

    def run(*arguments: str, code: int = 0) -> str:
        where = ("--redis-url", redis_server.url, "--namespace", namespace)
        assert _run(["models", *arguments, *where]) == code
        printed = capsys.readouterr()
        return printed.err if code else printed.out

    asyncio.run(publish())
    return run


def test_names_are_entered_listed_and_removed(command: Command) -> None:
    command("alias", "best", "v2")
    command("split", "chat", "v1=95", "v2=5")
    command("fallback", "v2", "v2", "v1")
    assert json.loads(command("list", "--json"))["names"] == {
        "best": {"kind": "alias", "target": "v2"},
        "chat": {"kind": "split", "weights": {"v1": 95.0, "v2": 5.0}},
        "v2": {"kind": "fallback", "chain": ["v2", "v1"]},
    }
    table = command("list")
    assert "v1 95.0%, v2 5.0%" in table
    assert "v2, else v1" in table
    for name in ("best", "chat", "v2"):
        command("remove", name)
    assert json.loads(command("list", "--json"))["names"] == {}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("alias", "best", "v3"), 1, "'v3' is neither a model nor a name in the catalog"),
        (("alias", "loop", "loop"), 1, "'loop' is neither a model"),
        (("split", "chat", "v1"), 2, "expected MODEL=WEIGHT"),
        (("split", "chat", "v1=0"), 2, "weights.v1: got 0.0"),
        (("split", "chat", "v1=1", "v1=2"), 2, "expected each name once"),
        (("fallback", "best", "v1"), 2, "chain: got ('v1',)"),
        (("remove", "none"), 1, "'none' is not in the catalog"),
    ],
)
def test_mistakes_are_told(
    command: Command, arguments: tuple[str, ...], code: int, said: str
) -> None:
    assert said in command(*arguments, code=code)


def test_a_model_may_be_named_before_it_is_served(command: Command) -> None:
    command("alias", "next", "v3", "--allow-unknown")
    assert json.loads(command("list", "--json"))["names"]["next"]["target"] == "v3"
