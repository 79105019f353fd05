"""The router that a command talks to."""

from collections.abc import Iterator
from contextlib import contextmanager

from trunkline import Client, TrunklineError

from ops.failure import CommandError
from ops.serve_run_file import find_run_file

_DEFAULT_ADDRESS = "127.0.0.1:50051"


@contextmanager
def connection(address: str | None, api_key: str | None) -> Iterator[Client]:
    """A client for `address`, or for the cluster that runs on this machine.

    Errors of the calls made inside become CommandErrors.
    """
    if address is None:
        run = find_run_file()
        address = run.grpc_address if run else _DEFAULT_ADDRESS
    try:
        with Client(address, api_key=api_key) as client:
            yield client
    except TrunklineError as error:
        raise CommandError(f"{address}: {error.message}") from error
