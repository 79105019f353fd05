"""A client of Ray Serve within its cluster, by what Serve calls a handle."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from cluster.ray_cluster import join_ray
from ops.bench.router_load.clients import Seen, ignore

APP = "bench"


class HandleClient:
    """Over this process's connection to the cluster, which is made once."""

    def __init__(self, address: str) -> None:
        import ray
        from ray import serve

        if not ray.is_initialized():
            join_ray(address)
        self._handle: Any = serve.get_app_handle(APP)

    async def stream(
        self, prompt: str, max_tokens: int, on_first: Callable[[], None] = ignore
    ) -> Seen:
        """Tokens as they come. Raises ray.exceptions.RayError."""
        start = perf_counter()
        first_s, tokens = 0.0, 0
        streaming = self._handle.options(stream=True).stream
        async for letter in streaming.remote(prompt, max_tokens):
            if not tokens:
                first_s = perf_counter() - start
                on_first()
            tokens += len(letter)
        return Seen(first_s, tokens, tokens)

    async def whole(self, prompt: str, max_tokens: int) -> Seen:
        """All tokens at once. Raises ray.exceptions.RayError."""
        start = perf_counter()
        text = await self._handle.whole.remote(prompt, max_tokens)
        return Seen(perf_counter() - start, 1, len(text))
