"""The routers that are measured, each before one replica."""

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cluster.model_card import ModelCard
from cluster.redis_client import connect
from cluster.redis_server import RedisServer
from cluster.registry import Registry, ReplicaRecord
from ops.bench.peers.process import PeerError
from ops.bench.peers.venvs import python
from ops.bench.router_load.child import Child, child, free_port, running

MODEL: Final = "bench"
_LEASE_S = 3600.0
_START_S = 60.0
_POLL_S = 0.2
_VOCAB_SIZE = 256


@asynccontextmanager
async def router_before(replica: Child, directory: Path) -> AsyncIterator[Child]:
    """A router, with a Redis in `directory`, that has found the replica."""
    redis = RedisServer(directory)
    await redis.start()
    try:
        async with connect(redis.url) as client:
            await _register(Registry(client, "trunkline"), replica)
        settings = {
            "redis": {"url": redis.url},
            "router": {"grpc_port": 0, "http_port": 0, "drain_timeout_s": 1.0},
            "log": {"format": "json"},
        }
        arguments = ("router.main", "--config-json", json.dumps(settings))
        async with child(*arguments, directory=directory) as router:
            yield router
    finally:
        await redis.stop()


@asynccontextmanager
async def sglang_router_before(replica: Child, directory: Path) -> AsyncIterator[Child]:
    """SGLang's router, which passes HTTP on. Raises PeerError if it is not installed or fails."""
    port = free_port()
    command = [
        *(str(python("sglang_router")), "-m", "sglang_router.launch_router"),
        *("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())),
        *("--worker-urls", f"http://{replica.addresses['http']}", "--log-level", "error"),
        *("--max-concurrent-requests", "4096"),
    ]
    async with running(command, directory / "sglang_router.log") as process:
        for _ in range(int(_START_S / _POLL_S)):
            if process.has_ended:
                break
            if await _is_healthy(port):
                yield Child(process, process.pid, {"http": f"127.0.0.1:{port}"})
                return
            await asyncio.sleep(_POLL_S)
        raise PeerError(f"it does not come up: {process.last_words}")


@asynccontextmanager
async def ray_serve(directory: Path) -> AsyncIterator[tuple[Child, Child]]:
    """Ray Serve, whose one deployment answers by itself, and a load's process in its cluster."""
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    async with (
        child(
            "ops.bench.router_load.ray_serve", directory=directory, environment=environment
        ) as serve,
        child(
            "ops.bench.router_load.generator", directory=directory, environment=environment
        ) as caller,
    ):
        yield serve, caller


async def _is_healthy(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.write(b"GET /readiness HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


async def _register(registry: Registry, replica: Child) -> None:
    record = ReplicaRecord(
        replica_id="replica-0",
        epoch=await registry.next_epoch(),
        model=MODEL,
        address=replica.addresses["replica"],
    )
    await registry.publish_model(_card())
    await registry.renew(record, _LEASE_S)


def _card() -> ModelCard:
    tokenizer = Tokenizer(models.BPE(vocab=_vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return ModelCard(
        name=MODEL,
        fingerprint="0" * 32,
        max_model_len=4096,
        vocab_size=_VOCAB_SIZE,
        block_size=16,
        eos_token_ids=(),
        tokenizer_json=tokenizer.to_str(),
    )


def _vocabulary() -> dict[str, int]:
    """The bytes, of which ASCII letters have their own numbers."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ascii_ids = {letter: ord(letter) for letter in letters if ord(letter) < 128}
    others = iter(sorted(set(range(_VOCAB_SIZE)) - set(ascii_ids.values())))
    return {letter: ascii_ids.get(letter) or next(others) for letter in letters}
