"""Ray Serve over answers that cost nothing: `python -m ops.bench.router_load.ray_serve`.

When it listens, one line of JSON is printed: addresses of its HTTP and its gRPC proxy, that of its
cluster for handles, and the process of the proxies, which are one actor. SIGTERM ends all of it.
"""

import json
import signal
import tempfile
import threading
from pathlib import Path
from typing import Any

import psutil

from cluster.ray_cluster import leave_ray, start_local_ray
from cluster.settings import RaySettings
from ops.bench.router_load.answers import Answers
from ops.bench.router_load.child import ChildFailed, free_port
from ops.bench.router_load.http_answers import HttpAnswers
from ops.bench.router_load.ray_client import APP
from ops.serve_reaper import Reaper

_SERVICER = "trunkline.v1.inference_pb2_grpc.add_InferenceServicer_to_server"
_MAX_ONGOING = 4096
_PROXY = "ray::ProxyActor"


class _Application(Answers):
    def __serve_build_asgi_app__(self) -> Any:
        return HttpAnswers()


def main() -> None:
    """See the module."""
    told_to_stop = threading.Event()
    reaper = Reaper()
    with tempfile.TemporaryDirectory(prefix="trunkline-", ignore_cleanup_errors=True) as directory:
        try:
            start_local_ray(RaySettings(), Path(directory))
            # After Ray, which has a handler of its own.
            signal.signal(signal.SIGTERM, lambda *_: told_to_stop.set())
            print(json.dumps(_serve()), flush=True)
            told_to_stop.wait()
        finally:
            leave_ray()
            reaper.reap()


def _serve() -> dict[str, Any]:
    import ray
    from ray import serve

    http_port, grpc_port = free_port(), free_port()
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(
        http_options={"host": "127.0.0.1", "port": http_port},
        # Serve has it listen on all interfaces.
        grpc_options={"port": grpc_port, "grpc_servicer_functions": [_SERVICER]},
        logging_config=quiet,
    )
    deployed = serve.deployment(max_ongoing_requests=_MAX_ONGOING, logging_config=quiet)
    serve.run(deployed(serve.ingress()(_Application)).bind(), name=APP)
    return {
        "http": f"127.0.0.1:{http_port}",
        "grpc": f"127.0.0.1:{grpc_port}",
        "handle": ray.get_runtime_context().gcs_address,
        "pid": _proxy_pid(),
    }


def _proxy_pid() -> int:
    for process in psutil.Process().children(recursive=True):
        if "".join(process.cmdline()).startswith(_PROXY):
            return process.pid
    raise ChildFailed(f"no process {_PROXY}")


if __name__ == "__main__":
    main()
