"""Where this machine keeps what it need not make twice."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """The user's folder for caches of ours. RuntimeError for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "trunkline"
