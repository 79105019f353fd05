"""The processes of a measurement."""

import asyncio
import json
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

import psutil
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from cluster.child_process import tied
from cluster.model_card import ModelCard
from cluster.redis_client import connect
from cluster.redis_server import RedisServer
from cluster.registry import Registry, ReplicaRecord
from ops.bench.peers.process import PeerError
from ops.bench.peers.venvs import python
from ops.bench.router_load.load import Load, Outcome

MODEL: Final = "bench"
_LEASE_S = 3600.0
_START_S = 60.0
_POLL_S = 0.2
_VOCAB_SIZE = 256


class ChildFailed(Exception):  # noqa: N818 - it is news, not a mistake
    """A process that did not do what it was started for."""


class Child:
    """A running process that has told where it listens."""

    def __init__(self, pid: int, addresses: dict[str, str]) -> None:
        self.addresses = addresses
        self._process = psutil.Process(pid)

    def cpu_s(self) -> float:
        """CPU time of all its threads so far."""
        times = self._process.cpu_times()
        return times.user + times.system


@asynccontextmanager
async def child(*arguments: str, log: int | None = None) -> AsyncIterator[Child]:
    """Runs `python -m ARGUMENTS`, from its first line of output on; `log` takes its errors.

    Raises ChildFailed.
    """
    command = [sys.executable, "-m", *arguments]
    async with _running(command, stdout=PIPE, stderr=log) as process:
        assert process.stdout is not None, "it was asked for"
        async with asyncio.timeout(_START_S):
            line = await process.stdout.readline()
        if not line:
            raise ChildFailed(f"{arguments[0]}: exit code {await process.wait()}")
        yield Child(process.pid, json.loads(line))


@asynccontextmanager
async def _running(
    command: Sequence[str], *, stdout: int | None, stderr: int | None
) -> AsyncIterator[Process]:
    process = await asyncio.create_subprocess_exec(*tied(command), stdout=stdout, stderr=stderr)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


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
        with (directory / "router.log").open("wb") as log:
            arguments = ("router.main", "--config-json", json.dumps(settings))
            async with child(*arguments, log=log.fileno()) as router:
                yield router
    finally:
        await redis.stop()


@asynccontextmanager
async def sglang_router_before(replica: Child, directory: Path) -> AsyncIterator[Child]:
    """SGLang's router, which passes HTTP on. Raises PeerError if it is not installed or fails."""
    port = _free_port()
    command = [
        *(str(python("sglang_router")), "-m", "sglang_router.launch_router"),
        *("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(_free_port())),
        *("--worker-urls", f"http://{replica.addresses['http']}", "--log-level", "error"),
        *("--max-concurrent-requests", "4096"),
    ]
    log_file = directory / "sglang_router.log"
    with log_file.open("wb") as log:
        async with _running(command, stdout=log.fileno(), stderr=log.fileno()) as process:
            for _ in range(int(_START_S / _POLL_S)):
                if process.returncode is not None:
                    break
                if await _is_healthy(port):
                    yield Child(process.pid, {"http": f"127.0.0.1:{port}"})
                    return
                await asyncio.sleep(_POLL_S)
    last = _last_line(log_file.read_bytes().splitlines())
    raise PeerError(f"it does not come up: {last}")


async def _is_healthy(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.write(b"GET /readiness HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return answer.startswith(b"HTTP/1.1 200")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def apply(address: str, load: Load) -> Outcome:
    """What came of a load. Raises ChildFailed."""
    process = await asyncio.create_subprocess_exec(
        *tied([sys.executable, "-m", "ops.bench.router_load.generator"]),
        address,
        json.dumps(asdict(load)),
        stdout=PIPE,
        stderr=PIPE,
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise ChildFailed(_last_line(errors.splitlines()))
    return Outcome(**json.loads(output))


def _last_line(lines: Sequence[bytes]) -> str:
    return lines[-1].decode(errors="replace") if lines else "the load's process ended"


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
