"""The options of `trunkline models`."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Models, and the names that stand for them.")

RedisUrl = Annotated[
    str | None, typer.Option(help="The cluster's Redis; by default this machine's cluster.")
]
Namespace = Annotated[str, typer.Option(help="With --redis-url.")]
Name = Annotated[str, typer.Argument(help="What clients ask for.")]
AllowUnknown = Annotated[
    bool, typer.Option("--allow-unknown", help="Also models that are not served yet.")
]


@app.command("list")
def show(
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = "trunkline",
) -> None:
    """What clients can ask for, and what it stands for."""
    from ops.catalog import Catalog

    Catalog(redis_url, namespace).show(as_json=json)


@app.command()
def alias(
    name: Name,
    target: Annotated[str, typer.Argument(help="A model, or another name.")],
    allow_unknown: AllowUnknown = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = "trunkline",
) -> None:
    """Have a name stand for a model."""
    from ops.catalog import Catalog

    Catalog(redis_url, namespace).alias(name, target, allow_unknown=allow_unknown)


@app.command()
def split(
    name: Name,
    weights: Annotated[list[str], typer.Argument(help="MODEL=WEIGHT ..., such as v1=95 v2=5.")],
    allow_unknown: AllowUnknown = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = "trunkline",
) -> None:
    """Share a name's sessions out among models, in proportion to their weights."""
    from ops.catalog import Catalog

    Catalog(redis_url, namespace).split(name, weights, allow_unknown=allow_unknown)


@app.command()
def fallback(
    name: Name,
    chain: Annotated[list[str], typer.Argument(help="Models in the order they are tried.")],
    allow_unknown: AllowUnknown = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = "trunkline",
) -> None:
    """Have a name stand for the first model that can take a request."""
    from ops.catalog import Catalog

    Catalog(redis_url, namespace).fallback(name, chain, allow_unknown=allow_unknown)


@app.command()
def remove(name: Name, redis_url: RedisUrl = None, namespace: Namespace = "trunkline") -> None:
    """Take a name away. A model of that name stays."""
    from ops.catalog import Catalog

    Catalog(redis_url, namespace).remove(name)
