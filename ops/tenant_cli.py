"""The options of `trunkline tenant`."""

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Who may use the cluster, and how much.")

Name = Annotated[str, typer.Argument(help="Name of the tenant.")]
RedisUrl = Annotated[
    str | None, typer.Option(help="The cluster's Redis; by default this machine's cluster.")
]
Namespace = Annotated[str, typer.Option(help="With --redis-url.")]
Limit = Annotated[int | None, typer.Option(min=0, help="0 sets no limit.")]
Weight = Annotated[float | None, typer.Option(help="Share under router.queue fair.")]
MaxPriority = Annotated[int | None, typer.Option(help="Highest priority of its requests.")]
CacheGroup = Annotated[
    str | None, typer.Option(help="Share cached prefixes with this group's tenants.")
]
Admin = Annotated[bool | None, typer.Option(help="May use trunkline.v1.Admin.")]


@app.command()
def add(
    name: Name,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    max_concurrency: Limit = None,
    weight: Weight = None,
    max_priority: MaxPriority = None,
    cache_group: CacheGroup = None,
    admin: Admin = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = "trunkline",
) -> None:
    """Add a tenant, and print its first key. The key cannot be shown again."""
    from ops.tenant import Changes, Tenants

    changes = Changes(
        *(requests_per_minute, tokens_per_minute, max_concurrency, weight, max_priority),
        *(cache_group, admin),
    )
    print(Tenants(redis_url, namespace).add(name, changes))


@app.command("list")
def list_(
    redis_url: RedisUrl = None,
    namespace: Namespace = "trunkline",
    json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """All tenants, their limits and the ids of their keys."""
    from ops.tenant import Tenants

    Tenants(redis_url, namespace).show(as_json=json)


@app.command()
def key(
    name: Name,
    remove: Annotated[
        str | None, typer.Option(help="Id of a key to take away, in place of a new one.")
    ] = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = "trunkline",
) -> None:
    """Give a tenant one more key, printed once; or take one away."""
    from ops.tenant import Tenants

    tenants = Tenants(redis_url, namespace)
    if remove is None:
        print(tenants.add_key(name))
    else:
        tenants.remove_key(name, remove)


@app.command()
def remove(name: Name, redis_url: RedisUrl = None, namespace: Namespace = "trunkline") -> None:
    """Remove a tenant and all its keys."""
    from ops.tenant import Tenants

    Tenants(redis_url, namespace).remove(name)


@app.command()
def limits(
    name: Name,
    requests_per_minute: Limit = None,
    tokens_per_minute: Limit = None,
    max_concurrency: Limit = None,
    weight: Weight = None,
    max_priority: MaxPriority = None,
    cache_group: CacheGroup = None,
    admin: Admin = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = "trunkline",
) -> None:
    """Change what is given, and print what the tenant may. An empty cache group is its own."""
    from ops.tenant import Changes, Tenants

    changes = Changes(
        *(requests_per_minute, tokens_per_minute, max_concurrency, weight, max_priority),
        *(cache_group, admin),
    )
    print(Tenants(redis_url, namespace).change(name, changes))
