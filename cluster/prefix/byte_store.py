"""A Redis of its own, full of blocks' keys and values, which any replica reads and writes.

Values are named by what is in them, so nobody ever changes one, and the least recently used may go
at any time: the server is to have `maxmemory` and `maxmemory-policy allkeys-lru`.
"""

from collections.abc import Mapping, Sequence

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from cluster.prefix.byte_value import seal

_READ_BYTES = 64 * 1024
"""Asked of the socket at a time."""


class ByteStore:
    """Blocks of one layout; may be used on several threads.

    All calls raise redis.exceptions.RedisError if the server does not answer in time.
    """

    def __init__(self, url: str, layout: bytes, *, timeout_s: float) -> None:
        """Connects when first used. `layout` tells apart bytes that mean different things.

        Raises ValueError for what is no redis://, rediss:// or unix:// URL.
        """
        self._layout = layout
        self._redis: Redis = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            socket_read_size=_READ_BYTES,
            retry=Retry(NoBackoff(), 0),
        )

    def key(self, block_hash: bytes) -> bytes:
        """What a block is stored under."""
        return b"kv:" + self._layout + b":" + block_hash

    def num_leading(self, hashes: Sequence[bytes]) -> int:
        """How many of the first blocks are there, without a gap; these count as used."""
        for index, is_there in enumerate(self.touch(hashes)):
            if not is_there:
                return index
        return len(hashes)

    def touch(self, hashes: Sequence[bytes]) -> list[bool]:
        """Which blocks are there; these count as used."""
        pipe = self._redis.pipeline(transaction=False)
        for block_hash in hashes:
            pipe.touch(self.key(block_hash))
        return [bool(count) for count in pipe.execute()]

    def get(self, hashes: Sequence[bytes]) -> list[bytes | None]:
        """The sealed values of blocks, None for those that are not there."""
        values: list[bytes | None] = self._redis.mget([self.key(h) for h in hashes])  # type: ignore[assignment]
        return values

    def put(self, blocks: Mapping[bytes, memoryview]) -> None:
        """Store blocks by hash."""
        pipe = self._redis.pipeline(transaction=False)
        for block_hash, payload in blocks.items():
            key = self.key(block_hash)
            pipe.set(key, seal(key, payload))
        pipe.execute()

    def remove(self, block_hash: bytes) -> None:
        """Have one block not be there any more, because it is of no use."""
        self._redis.delete(self.key(block_hash))

    def room_bytes(self, budget_bytes: int) -> int:
        """What may be written: as much as one likes to a server with a `maxmemory`, which makes
        room itself; to another, what it has less than the budget."""
        memory = self._redis.info("memory")
        if memory["maxmemory"]:
            return budget_bytes
        return max(0, budget_bytes - int(memory["used_memory"]))

    def close(self) -> None:
        """End its connections; calls under way fail."""
        self._redis.close()
