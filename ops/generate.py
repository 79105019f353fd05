"""`trunkline generate`."""

import sys
from typing import Unpack

from trunkline import Options

from ops.connection import connection


def generate(
    prompt: str,
    *,
    address: str | None,
    api_key: str | None,
    model: str,
    timeout_s: float | None,
    **options: Unpack[Options],
) -> None:
    """Stream the continuation to standard output. Raises CommandError."""
    with connection(address, api_key) as client:
        with client.generate(prompt, model=model, timeout_s=timeout_s, **options) as deltas:
            for delta in deltas:
                sys.stdout.write(delta.text)
                sys.stdout.flush()
        sys.stdout.write("\n")
