"""How the clusters that are harmed are set up."""

from typing import Any

SETTINGS: dict[str, Any] = {
    "engine": {
        # In bf16 a sum may round to another token when it is computed beside other requests.
        "dtype": "float32",
        "kv_cache_bytes": 256 * 1024 * 1024,
        "max_num_seqs": 64,
        "num_threads": 1,
    },
    # Shorter than any of the streams takes.
    "replica": {"count": 2, "drain_timeout_s": 0.5},
    "router": {"replica_silence_s": 3.0},
}
"""Two replicas, each of which has room for all requests."""
