"""Load over Trunkline's own protocol."""

from collections.abc import Callable

from trunkline import AsyncClient, RetryPolicy, TrunklineError

from ops.bench.load import Answer, LoadError


class GrpcTarget:
    """A router's gRPC endpoint."""

    def __init__(self, address: str, *, api_key: str | None, timeout_s: float) -> None:
        # A retry would hide a refusal and count its pause as the server's time.
        self._client = AsyncClient(address, api_key=api_key, retry=RetryPolicy(max_attempts=1))
        self._timeout_s = timeout_s

    async def model(self) -> str:
        """The first model's name."""
        try:
            models = await self._client.models(timeout_s=self._timeout_s)
        except TrunklineError as error:
            raise LoadError(error.reason, error.message) from error
        if not models:
            raise LoadError("NO_MODEL", "the server serves no model")
        return models[0].name

    async def generate(
        self,
        model: str,
        prompt: list[int],
        output_tokens: int,
        on_tokens: Callable[[], None],
        session_id: str = "",
    ) -> Answer:
        """Generate greedily past the end of sequence; failures are counted by their reason."""
        token_ids: list[int] = []
        stream = self._client.generate(
            prompt,
            model=model,
            max_tokens=output_tokens,
            ignore_eos=True,
            temperature=0,
            session_id=session_id or None,
            timeout_s=self._timeout_s,
        )
        try:
            async for delta in stream:
                if delta.token_ids:
                    on_tokens()
                    token_ids += delta.token_ids
        except TrunklineError as error:
            raise LoadError(error.reason, error.message) from error
        return Answer(len(token_ids), token_ids, stream.usage.cached_prompt_tokens)

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()
