"""How the cluster of the tests is set up."""

from typing import Any

MAX_NUM_SEQS = 8
"""Few enough that a test can make requests wait in the engines."""

ENGINE: dict[str, Any] = {
    # In bf16 a sum may round to another token when it is computed beside other requests.
    "dtype": "float32",
    "kv_cache_bytes": 256 * 1024 * 1024,
    "max_num_seqs": MAX_NUM_SEQS,
    "num_threads": 1,
}
SETTINGS: dict[str, Any] = {"engine": ENGINE, "replica": {"count": 2}}
