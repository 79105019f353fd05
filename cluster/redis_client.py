"""How every component connects to Redis."""

from urllib.parse import urlsplit

from redis.asyncio import Redis

_TIMEOUT_S = 2.0


def connect(url: str) -> Redis:
    """A client for a redis://, rediss:// or unix:// URL; connects when it is first used.

    Raises ValueError for other URLs. Calls raise RedisError when the server does not answer in
    time: whoever waits longer for it stalls what could go on without it.
    """
    return Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)


def without_password(url: str) -> str:
    """The URL as it may be shown."""
    password = urlsplit(url).password
    return url.replace(f":{password}@", ":***@") if password else url
