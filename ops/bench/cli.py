"""`trunkline bench …`."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Measure Trunkline and its peers.")

Json = Annotated[Path | None, typer.Option("--json", help="Also write the rows to this file.")]


@app.command()
def engine(
    model: Annotated[
        str, typer.Option(help="Directory of a model, or the name of a shape to make.")
    ] = "smol-110m",
    runs: Annotated[int, typer.Option(min=1, help="Runs, with other prompts each.")] = 3,
    requests: Annotated[int, typer.Option(min=1, help="Requests of the batch.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 256,
    output_tokens: Annotated[int, typer.Option(min=2)] = 128,
    json: Json = None,
) -> None:
    """Offline throughput, and where a step's time goes."""
    from ops.bench.engine import BatchWork, bench_engine
    from ops.bench.report import print_rows, write_rows

    rows = bench_engine(model, BatchWork(requests, prompt_tokens, output_tokens), runs)
    print_rows(rows, "trunkline bench engine")
    if json is not None:
        write_rows(rows, json)


@app.command()
def attention(
    heads: Annotated[int, typer.Option(min=1, help="Query heads.")] = 12,
    kv_heads: Annotated[int, typer.Option(min=1, help="Key and value heads.")] = 4,
    head_dim: Annotated[int, typer.Option(min=2, help="Elements of a head.")] = 64,
    runs: Annotated[int, typer.Option(min=1)] = 5,
    json: Json = None,
) -> None:
    """One layer's attention on the CPU, by backend and type of cache, beside the machine's best."""
    from ops.bench.attention import bench_attention, share_of_limit
    from ops.bench.report import print_rows, write_rows
    from workers.layers.attention import AttentionShape

    rows = bench_attention(AttentionShape(heads, kv_heads, head_dim), runs)
    print_rows(rows, "trunkline bench attention", {"of the limit": share_of_limit})
    if json is not None:
        write_rows(rows, json)


@app.command()
def serve(
    target: Annotated[
        str,
        typer.Argument(help="host:port of Trunkline's gRPC, or an OpenAI URL like http://host/v1."),
    ],
    workload: Annotated[
        str | None,
        typer.Option(help="shared, chat, agent, retrieval, mixed or burst: see docs/workloads.md."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A recorded workload: JSON lines, see docs/workloads.md.")
    ] = None,
    scale: Annotated[
        float, typer.Option(min=0.001, help="With --workload: multiplies all lengths.")
    ] = 1.0,
    speed: Annotated[
        float, typer.Option(min=0.001, help="Divides pauses, and the times of a trace.")
    ] = 1.0,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="Open loop: requests/s on average, as a Poisson process."),
    ] = None,
    clients: Annotated[
        int, typer.Option(min=1, help="Closed loop, without --rate: requests at a time.")
    ] = 8,
    runs: Annotated[int, typer.Option(min=1, help="Runs, with other prompts each.")] = 3,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a run.")] = 64,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 256,
    output_tokens: Annotated[int, typer.Option(min=2)] = 128,
    vocab_size: Annotated[
        int, typer.Option(min=1, help="Prompts are random token ids below this.")
    ] = 1000,
    model: Annotated[
        str | None, typer.Option(help="Name of the model; without one, the server's first.")
    ] = None,
    engine: Annotated[str, typer.Option(help="What to call the server in the rows.")] = "trunkline",
    seed: Annotated[int, typer.Option(help="Fixes prompts and arrivals.")] = 0,
    api_key: Annotated[str | None, typer.Option(envvar="TRUNKLINE_API_KEY")] = None,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Longest a request may take.")] = 600,
    json: Json = None,
) -> None:
    """Latency and throughput of a running server; exits with 1 if a request failed."""
    from ops.bench.load import LoadError, Work
    from ops.bench.load_arrivals import ClosedLoop, OpenLoop
    from ops.bench.load_sessions import Pace
    from ops.bench.report import Row, print_rows, write_rows
    from ops.bench.serve import Load, PromptLoad, SessionLoad, bench_serve, open_target
    from ops.bench.workloads.chosen import choose

    work = Work(requests, prompt_tokens, output_tokens, vocab_size)
    load: Load = PromptLoad(work, ClosedLoop(clients) if rate is None else OpenLoop(rate, seed))
    if workload is not None or trace is not None:
        chosen = choose(workload, trace, requests, scale)
        is_closed = rate is None and trace is None
        pace = Pace(clients if is_closed else None, rate or speed, speed)
        load = SessionLoad(chosen.name, chosen.sessions, pace, vocab_size)

    async def measure() -> list[Row]:
        async with open_target(target, api_key=api_key, timeout_s=timeout_s) as server:
            return await bench_serve(
                server, load, work, engine=engine, model=model, runs=runs, seed=seed
            )

    try:
        rows = asyncio.run(measure())
    except LoadError as error:
        typer.echo(f"{target}: {error}", err=True)
        raise typer.Exit(1) from error
    print_rows(rows, "trunkline bench serve")
    if json is not None:
        write_rows(rows, json)
    if any(row.metric == "errors" and row.high for row in rows):
        raise typer.Exit(1)


@app.command()
def peers(
    model: Annotated[
        str, typer.Option(help="Directory of a model, or the name of a shape to make.")
    ] = "smol-110m",
    engines: Annotated[
        str, typer.Option(help="Beginnings of engines' names, with commas; without any, all.")
    ] = "",
    works: Annotated[
        str,
        typer.Option(help="decode, prefill, prefix_hit, batch, start, rss; without any, all."),
    ] = "",
    runs: Annotated[int, typer.Option(min=1, help="Runs, with other prompts each.")] = 3,
    served: Annotated[
        bool, typer.Option("--served", help="Servers under load instead of engines offline.")
    ] = False,
    json: Json = None,
) -> None:
    """Our engine beside its peers, which `make bench-peers` installs; in turn within each run."""
    from ops.bench.peers.models import model_folder
    from ops.bench.peers.offline import bench_offline
    from ops.bench.peers.served import bench_served
    from ops.bench.report import write_rows
    from ops.failure import UsageError

    names = [name.strip() for name in engines.split(",") if name.strip()]
    wanted = [name.strip() for name in works.split(",") if name.strip()]
    try:
        folder = model_folder(model)
        if served:
            rows = bench_served(folder, names, runs)
        else:
            rows = bench_offline(folder, names, wanted, runs)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    if json is not None:
        write_rows(rows, json)


@app.command()
def gemm(
    shapes: Annotated[str, typer.Option(help="Inputs x outputs, with commas.")] = "",
    arithmetics: Annotated[
        str,
        typer.Option(help="float32, bfloat16, int8, int8_int8, int4, int4_int8; without any, all."),
    ] = "",
    rows: Annotated[str, typer.Option(help="Rows of activations, with commas.")] = "",
    runs: Annotated[int, typer.Option(min=1, help="Runs, ours and torch's in turn in each.")] = 3,
    json: Json = None,
) -> None:
    """Products with weights, beside torch's and what memory and FMA allow.

    The table has the nearer limit of each product only; the file has both.
    """
    from ops.bench import gemm as bench
    from ops.bench.report import print_rows, write_rows
    from ops.failure import UsageError
    from workers.kernels.cpu_gemm import ARITHMETICS

    def listed(text: str, default: Sequence[str]) -> Sequence[str]:
        return [part.strip() for part in text.split(",") if part.strip()] or default

    try:
        found = bench.bench_gemm(
            listed(shapes, bench.SHAPES),
            listed(arithmetics, ARITHMETICS),
            listed(rows, bench.ROWS),
            runs,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    print_rows(bench.nearest_to_limit(found), "trunkline bench gemm", {"share": bench.share})
    if json is not None:
        write_rows(found, json)


@app.command()
def sampling(
    vocabularies: Annotated[str, typer.Option(help="Sizes, with commas.")] = "32000,151936",
    batches: Annotated[str, typer.Option(help="Rows, with commas.")] = "1,32,64",
    runs: Annotated[int, typer.Option(min=1, help="Runs, kernels and torch in turn in each.")] = 3,
    json: Json = None,
) -> None:
    """A step's draws by the kernels and in torch, beside reading the logits once from memory."""
    from ops.bench.report import print_rows, write_rows
    from ops.bench.sampling import SamplingWork, bench_sampling
    from ops.failure import UsageError

    try:
        works = [
            SamplingWork(int(vocabulary), int(batch))
            for vocabulary in vocabularies.split(",")
            for batch in batches.split(",")
        ]
    except ValueError as error:
        raise UsageError(f"--vocabularies, --batches: {error}; expected integers") from error
    rows = bench_sampling(works, runs)
    print_rows(rows, "trunkline bench sampling")
    if json is not None:
        write_rows(rows, json)


@app.command()
def router(
    figures: Annotated[str, typer.Option(help="choice, load; without any, both.")] = "",
    prompt_tokens: Annotated[
        str, typer.Option(help="For choice: lengths of prompts, with commas.")
    ] = "512,8192",
    peers: Annotated[
        str, typer.Option(help="For load, with commas: sglang-router, ray-serve (slow to start).")
    ] = "sglang-router",
    runs: Annotated[int, typer.Option(min=1, help="Runs, with other prompts each.")] = 3,
    json: Json = None,
) -> None:
    """A choice among 64 replicas and the index's memory; then a router's own time for tokens and
    requests, between a load and replicas that compute nothing. The limits are goals."""
    from ops.bench.report import print_rows, write_rows
    from ops.bench.router import bench_router
    from ops.bench.router_load.bench import PEERS, bench_load
    from ops.failure import UsageError

    names = [name.strip() for name in figures.split(",") if name.strip()] or ["choice", "load"]
    if unknown := set(names) - {"choice", "load"}:
        raise UsageError(f"--figures: got {', '.join(sorted(unknown))}; expected choice, load")
    beside = [name.strip() for name in peers.split(",") if name.strip()]
    if unknown := set(beside) - set(PEERS):
        raise UsageError(f"--peers: got {', '.join(sorted(unknown))}; expected {', '.join(PEERS)}")
    try:
        lengths = [int(length) for length in prompt_tokens.split(",")]
    except ValueError as error:
        raise UsageError(f"--prompt-tokens: {error}; expected integers") from error
    rows = [
        *(bench_router(runs, lengths) if "choice" in names else ()),
        *(bench_load(runs, beside) if "load" in names else ()),
    ]
    print_rows(rows, "trunkline bench router")
    if json is not None:
        write_rows(rows, json)


@app.command()
def parallel(
    figures: Annotated[
        str, typer.Option(help="all_reduce, plan, tensor, pipeline; without any, all.")
    ] = "",
    model: Annotated[str, typer.Option(help="Name of a shape, of which to make a model.")] = (
        "qwen3-0.6b"
    ),
    runs: Annotated[int, typer.Option(min=1, help="Runs, what is compared in turn in each.")] = 3,
    json: Json = None,
) -> None:
    """Ranks of one replica: what they exchange, and what two gain and cost beside one."""
    from ops.bench.parallel import FIGURES, bench_parallel
    from ops.bench.report import print_rows, write_rows
    from ops.failure import UsageError

    names = [name.strip() for name in figures.split(",") if name.strip()] or list(FIGURES)
    try:
        rows = bench_parallel(names, model, runs)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print_rows(rows, "trunkline bench parallel")
    if json is not None:
        write_rows(rows, json)


@app.command()
def tiers(
    model: Annotated[str, typer.Option(help="Name of a shape, of which to make a model.")] = (
        "qwen3-0.6b"
    ),
    prefix_tokens: Annotated[int, typer.Option(min=16, help="Tokens of the hot prefix.")] = 1024,
    runs: Annotated[int, typer.Option(min=1, help="Runs, with another prefix each.")] = 3,
    json: Json = None,
) -> None:
    """A hot prefix from host memory and from Redis, beside computing it again."""
    from ops.bench.report import print_rows, write_rows
    from ops.bench.tiers import bench_tiers
    from ops.failure import UsageError

    try:
        rows = bench_tiers(model, prefix_tokens, runs)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print_rows(rows, "trunkline bench tiers")
    if json is not None:
        write_rows(rows, json)


@app.command()
def fairness(
    model: Annotated[str, typer.Option(help="What `trunkline serve` serves.")] = "demo",
    requests: Annotated[int, typer.Option(min=1, help="Of the measured tenant in a run.")] = 30,
    prompt_tokens: Annotated[int, typer.Option(min=1)] = 128,
    output_tokens: Annotated[int, typer.Option(min=2)] = 32,
    queues: Annotated[str, typer.Option(help="Settings of router.queue, with commas.")] = (
        "fair,fcfs"
    ),
    runs: Annotated[int, typer.Option(min=1, help="Runs, with other prompts each.")] = 3,
    json: Json = None,
) -> None:
    """What a tenant's flood costs another one: time to first token with and without it."""
    from ops.bench.fairness import FairnessWork, bench_fairness
    from ops.bench.load import LoadError
    from ops.bench.report import print_rows, write_rows
    from ops.failure import CommandError, UsageError

    work = FairnessWork(requests, prompt_tokens, output_tokens)
    try:
        rows = asyncio.run(bench_fairness(model, work, queues.split(","), runs))
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (LoadError, RuntimeError) as error:
        raise CommandError(str(error)) from error
    print_rows(rows, "trunkline bench fairness")
    if json is not None:
        write_rows(rows, json)
