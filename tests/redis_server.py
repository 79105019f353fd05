"""A real redis-server of one's own."""

import shutil
import subprocess
import tempfile
from pathlib import Path

from cluster.child_process import tied
from cluster.redis_server import redis_executable


class RedisServer:
    """A redis-server on a unix socket, which keeps nothing on disk."""

    def __init__(self) -> None:
        # Not pytest's directory: the path of a unix socket has at most 107 characters.
        self._directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self._directory}/redis.sock"

    def start(self) -> None:
        """Returns when it accepts connections."""
        self._process = subprocess.Popen(
            tied(
                [
                    redis_executable(),
                    *("--port", "0", "--unixsocket", f"{self._directory}/redis.sock"),
                    *("--save", "", "--appendonly", "no", "--dir", str(self._directory)),
                ]
            ),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "ready to accept connections" in line.lower():
                return
        raise RuntimeError(f"redis-server ended with {self._process.wait()}")

    def stop(self) -> None:
        """Ends it as a crash does; everything in it is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def remove(self) -> None:
        """Stops it and leaves nothing behind."""
        self.stop()
        shutil.rmtree(self._directory)
