"""The `trunkline` command.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Errors are one line on standard
error. Commands import what they need when they run: the help must not wait for Ray.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ops.bench.cli import app as bench
from ops.failure import CommandError
from ops.models_cli import app as models
from ops.tenant_cli import app as tenant

_EXIT_USAGE = 2

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Serve large language models, and talk to them.",
)
app.add_typer(bench, name="bench")
app.add_typer(models, name="models")
app.add_typer(tenant, name="tenant")

Address = Annotated[
    str | None,
    typer.Option(help="host:port of a router's gRPC; by default this machine's cluster."),
]
ModelName = Annotated[str, typer.Option(help="Name of the model; not needed where one is served.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens to answer with at the most.")]
Temperature = Annotated[
    float | None, typer.Option(min=0.0, help="0 always takes the likeliest token.")
]
Seed = Annotated[int | None, typer.Option(min=0, help="The same seed gives the same answer.")]
Timeout = Annotated[float | None, typer.Option("--timeout", min=0.0, help="Seconds to wait.")]
ApiKey = Annotated[str | None, typer.Option(envvar="TRUNKLINE_API_KEY")]


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Argument(help="Directory of a model, or a shipped one: demo.")
    ] = None,
    replicas: Annotated[int | None, typer.Option(min=0, help="Replicas to run.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    redis_url: Annotated[
        str | None, typer.Option(help="A Redis to use; by default a private one is started.")
    ] = None,
    ray_address: Annotated[
        str | None, typer.Option(help="A Ray cluster to use; by default one is started here.")
    ] = None,
    node_address: Annotated[
        str | None,
        typer.Option(help="This machine's address that others may join at, by `trunkline node`."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at.")] = None,
    grpc_port: Annotated[int | None, typer.Option(min=0, max=65535)] = None,
    http_port: Annotated[int | None, typer.Option(min=0, max=65535)] = None,
    quantization: Annotated[
        str | None, typer.Option(help="Of weights: none, int8, int8_weight_only or int4.")
    ] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="Of cached keys and values: auto or int8.")
    ] = None,
    tp: Annotated[
        int | None, typer.Option(min=1, help="Ranks that every weight matrix is cut among.")
    ] = None,
    pp: Annotated[
        int | None, typer.Option(min=1, help="Ranks, or groups of them, that layers go through.")
    ] = None,
    ep: Annotated[
        int | None, typer.Option(min=1, help="Ranks that experts are dealt out to.")
    ] = None,
    sp: Annotated[
        int | None, typer.Option(min=1, help="Ranks that long prompts are divided among.")
    ] = None,
) -> None:
    """Serve a model: router, replicas, Redis. Ctrl-C drains and stops."""
    from ops.serve import serve as run

    overrides: dict[str, object] = {
        "model": model,
        "replica": {"count": replicas},
        "redis": {"url": redis_url},
        "ray": {"address": ray_address, "node_address": node_address},
        "engine": {
            "quantization": quantization,
            "kv_cache_dtype": kv_cache_dtype,
            "parallel": {"tensor": tp, "pipeline": pp, "expert": ep, "sequence": sp},
        },
        "router": {"host": host, "grpc_port": grpc_port, "http_port": http_port},
    }
    raise typer.Exit(run(config, _given(overrides)))


@app.command()
def node(
    join: Annotated[str, typer.Option(help="host:port of the cluster's head.")],
    token_file: Annotated[
        Path | None,
        typer.Option(help="With the cluster's token; by default TRUNKLINE_JOIN_TOKEN has it."),
    ] = None,
    node_address: Annotated[
        str | None, typer.Option(help="This machine's address that the others reach.")
    ] = None,
    num_cpus: Annotated[
        int | None, typer.Option(min=0, help="CPUs to offer; by default all cores.")
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="key=value, for Ray; may be given again.")
    ] = None,
) -> None:
    """Add this machine to a cluster that another one serves. Ctrl-C drains it and leaves."""
    from ops.node import node as run

    code = run(
        join, token_file=token_file, address=node_address, num_cpus=num_cpus, labels=labels or []
    )
    raise typer.Exit(code)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input.")],
    model: ModelName = "",
    max_tokens: MaxTokens = 128,
    temperature: Temperature = None,
    seed: Seed = None,
    timeout_s: Timeout = None,
    address: Address = None,
    api_key: ApiKey = None,
) -> None:
    """Continue a prompt; the text appears as it is made."""
    from ops.generate import generate as run

    run(
        sys.stdin.read() if prompt == "-" else prompt,
        address=address,
        api_key=api_key,
        model=model,
        timeout_s=timeout_s,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )


@app.command()
def chat(
    model: ModelName = "",
    system: Annotated[str | None, typer.Option(help="Instructions for the model.")] = None,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = None,
    seed: Seed = None,
    address: Address = None,
    api_key: ApiKey = None,
) -> None:
    """Talk with a model. Ctrl-C cuts an answer short, Ctrl-D ends."""
    from ops.chat import chat as run

    run(
        address=address,
        api_key=api_key,
        model=model,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )


@app.command()
def rollout() -> None:
    """Replace this machine's replicas, with their settings read again, while requests run."""
    from ops.rollout import rollout as run

    run()


@app.command()
def status(
    redis_url: Annotated[
        str | None, typer.Option(help="The cluster's Redis; by default this machine's cluster.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="With --redis-url.")] = "trunkline",
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Replicas, their load and their caches."""
    from ops.status import status as run

    run(redis_url, namespace, as_json=json)


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(help="As the response names it.")],
    redis_url: Annotated[
        str | None, typer.Option(help="The cluster's Redis; by default this machine's cluster.")
    ] = None,
    namespace: Annotated[str, typer.Option(help="With --redis-url.")] = "trunkline",
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    api_key: ApiKey = None,
) -> None:
    """Why a request went to its replica, and what the others would have cost."""
    from ops.explain import explain as run

    run(request_id, redis_url, namespace, api_key, as_json=json)


@app.command()
def quality(
    model: Annotated[str, typer.Argument(help="Directory of a model, or a shipped one: demo.")],
    quantization: Annotated[
        str | None, typer.Option(help="Of weights: none, int8, int8_weight_only or int4.")
    ] = None,
    kv_cache_dtype: Annotated[
        str | None, typer.Option(help="Of cached keys and values: auto or int8.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="What is read; by default what the demo has not seen.")
    ] = None,
    max_perplexity_change: Annotated[
        float | None, typer.Option(min=0.0, help="Percent; exits with 1 if it changes by more.")
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Also write the rows to this file.")
    ] = None,
) -> None:
    """Compare a quantized model's predictions with those of the model as it is stored."""
    from ops.bench.report import print_rows, write_rows
    from ops.quality import quality as run

    rows, excess = run(
        model,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        text=text,
        max_perplexity_change=max_perplexity_change,
    )
    print_rows(rows, "trunkline quality")
    if json is not None:
        write_rows(rows, json)
    if excess is not None:
        raise CommandError(excess)


@app.command()
def simulate(
    workload: Annotated[
        str | None,
        typer.Option(help="shared, chat, agent, retrieval, mixed or burst: see docs/workloads.md."),
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="A recorded workload: JSON lines, see docs/workloads.md.")
    ] = None,
    policies: Annotated[
        str, typer.Option(help="With commas; oracle is one that knows all.")
    ] = "prefix,least_loaded,round_robin,oracle",
    replicas: Annotated[int, typer.Option(min=1)] = 64,
    routers: Annotated[int, typer.Option(min=1, help="Each with its own view.")] = 1,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            help="Requests/s on average, 5 per replica; of a trace, a factor of speed, 1.",
        ),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests of a run.")] = 2000,
    scale: Annotated[
        float, typer.Option(min=0.001, help="With --workload: multiplies all lengths.")
    ] = 1.0,
    event_delay_ms: Annotated[
        float, typer.Option(min=0.0, help="Until routers know what a replica has cached.")
    ] = 50.0,
    profile: Annotated[
        Path | None, typer.Option(help="An engine's figures, as --measure writes them.")
    ] = None,
    num_blocks: Annotated[
        int | None, typer.Option(min=1, help="Of each replica's cache, instead of the profile's.")
    ] = None,
    measure: Annotated[
        str | None, typer.Option(help="Only write --profile, from a model's real engine.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes everything.")] = 0,
    runs: Annotated[int, typer.Option(min=1, help="Runs, with other seeds each.")] = 1,
    json: Annotated[
        Path | None, typer.Option("--json", help="Also write the rows to this file.")
    ] = None,
) -> None:
    """Try routing policies on a cluster of any size, in virtual time."""
    from ops.failure import UsageError
    from ops.simulate.command import measure_profile, run_simulation

    if measure is not None:
        if profile is None:
            raise UsageError("--measure: expected --profile FILE beside it")
        measure_profile(measure, profile)
        return
    run_simulation(
        profile=profile,
        num_blocks=num_blocks,
        policies=policies,
        workload=workload,
        trace=trace,
        requests=requests,
        scale=scale,
        rate=rate or (5.0 * replicas if trace is None else 1.0),
        replicas=replicas,
        routers=routers,
        event_delay_ms=event_delay_ms,
        seed=seed,
        runs=runs,
        json=json,
    )


def main() -> None:
    """Run the command and leave with its exit code."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    try:
        return app(arguments, standalone_mode=False) or 0
    except typer.TyperException as error:
        # Without a command the help is shown, and the error says nothing.
        if message := error.format_message():
            print(f"trunkline: {message} (see trunkline --help)", file=sys.stderr)
        return _EXIT_USAGE
    except CommandError as error:
        print(f"trunkline: {error}", file=sys.stderr)
        return error.exit_code


def _given(overrides: dict[str, object]) -> dict[str, object]:
    """Without the options that were not given, which must not override the file's settings."""
    given: dict[str, object] = {}
    for name, value in overrides.items():
        kept = _given(value) if isinstance(value, dict) else value
        if kept is not None and kept != {}:
            given[name] = kept
    return given
