"""Puts replicas on a Ray cluster, changes their number and their version, takes them off."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

import ray
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaState
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus

from cluster.settings import Settings
from workers.replica.deployment import Replica
from workers.replica.machine import with_shares
from workers.replica.placement import (
    PlacementWatch,
    actor_options,
    bundles_of,
    give_up_waiting,
    live_nodes,
    waiting_replicas,
    with_device,
)

APP = "trunkline"
"""Serve's application with the replicas of the first model."""
_POLL_S = 0.1
_HEALTH_PERIOD_S = 1.0
_HEALTH_TIMEOUT_S = 5.0
_STOP_MARGIN_S = 5.0
"""Beyond the drain's own limit, for closing servers before Serve kills the process."""


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """What Serve says of the deployment."""

    running: bool
    """All replicas are there, of the version deployed last."""
    num_starting: int
    """Replicas of whatever version that have a place, but are neither there yet nor known to have
    failed."""
    failure: str
    """Why it cannot be deployed; empty if it can."""


def apps_of(settings: Settings) -> dict[str, Settings]:
    """The settings of each model by Serve's application with its replicas.

    `settings` are the whole tree, with the names of all models.
    """
    first, *more = settings.each_model
    # Serve puts a # between the parts of its names.
    return {APP: first} | {f"{APP}-{quote(one.model_name or '', safe='')}": one for one in more}


def deploy(settings: Settings, app: str = APP, others: Sequence[Settings] = ()) -> None:
    """Bring a model's replicas to these settings, without waiting for them.

    `others` are the settings of the other models, with which they share a lone machine.

    To Serve, every deployment is a new version, equal settings or not: its replicas are started
    before the old ones are drained, so that no request fails. To change the number
    alone, `scale`.
    """
    replica, nodes = settings.replica, live_nodes()
    settings = with_device(settings, nodes)
    deployment = serve.deployment(
        name=Replica.__name__,
        num_replicas=replica.count,
        ray_actor_options=actor_options(settings),
        placement_group_bundles=bundles_of(settings, nodes),
        placement_group_strategy="PACK",
        placement_group_bundle_label_selector=[replica.node_labels],
        max_surge_percent=100,
        max_constructor_retry_count=1,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        graceful_shutdown_timeout_s=replica.drain_timeout_s + _STOP_MARGIN_S,
        # Serve itself has no requests under way that it would have to wait for.
        graceful_shutdown_wait_loop_s=0.05,
    )(Replica)
    # What goes well needs no telling on the standard error of whoever deploys.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    application = deployment.bind(with_shares(settings, others).model_dump(mode="json"))
    serve.start(proxy_location="Disabled")
    serve._run(
        application, name=app, route_prefix=None, _blocking=False, external_scaler_enabled=True
    )


def scale(count: int, app: str = APP) -> None:
    """Have `count` replicas of the version that is deployed.

    Raises ValueError if none is. Goes by way of Serve's external scaler, as its REST API does.
    """
    client = _get_global_client()
    assert client is not None, "raises where there is none"
    deployment = DeploymentID(name=Replica.__name__, app_name=app)
    ray.get(client._controller.update_deployment_replicas.remote(deployment, count))


def rollout_status(app: str = APP) -> RolloutStatus:
    """How a deployment is doing."""
    application = serve.status().applications.get(app)
    if application is None:
        return RolloutStatus(running=False, num_starting=0, failure="")
    deployments = application.deployments.values()
    num_starting = sum(d.replica_states.get(ReplicaState.STARTING, 0) for d in deployments)
    failed = application.status is ApplicationStatus.DEPLOY_FAILED
    messages = [d.message for d in deployments] or [application.message]
    return RolloutStatus(
        running=application.status is ApplicationStatus.RUNNING,
        num_starting=max(0, num_starting - len(waiting_replicas(app))),
        failure=_last_line(messages[0]) if failed else "",
    )


def watch_placement(settings: Settings, app: str = APP) -> PlacementWatch:
    """Over the replicas that have just been deployed with these settings."""
    return PlacementWatch(settings.replica, app)


def undeploy(apps: Sequence[str] = (APP,)) -> None:
    """Drain the replicas of these and remove them; returns when that is done. Harmless without
    any."""
    for app in apps:
        serve.delete(app, _blocking=False)
    # Not by serve.delete, which waits for a minute only.
    while remaining := serve.status().applications.keys() & set(apps):
        # Serve would give a replica that has no place as long as one that drains. Until it has
        # begun to delete, it starts another in its stead.
        for app in remaining:
            give_up_waiting(app)
        time.sleep(_POLL_S)


def _last_line(message: str) -> str:
    """The line of a traceback that says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1] if lines else "the replicas do not start"
