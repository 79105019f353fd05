"""`trunkline rollout`."""

import os
import time

from ops.failure import CommandError
from ops.serve_rollouts import SIGNAL
from ops.serve_run_file import find_run_file, reread_run_file

_POLL_S = 0.1


def rollout() -> None:
    """Have this machine's cluster replace its replicas, and wait until it has.

    Raises CommandError if there is no cluster, or if new replicas do not start and the cluster goes
    back to the settings before.
    """
    before = run = find_run_file()
    if before is None:
        raise CommandError("no cluster runs on this machine")
    os.kill(before.pid, SIGNAL)
    while run is not None and run.num_rollouts == before.num_rollouts:
        time.sleep(_POLL_S)
        run = reread_run_file(before)
    if run is None:
        raise CommandError("the cluster has ended")
    if run.rollout_failure:
        raise CommandError(f"not rolled out: {run.rollout_failure}")
