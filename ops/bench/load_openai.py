"""Load over the OpenAI dialect, which Trunkline and its peers speak alike."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from ops.bench.load import Answer, LoadError

_DATA = "data: "
_DONE = "[DONE]"
_SHOWN_CHARACTERS = 500


class OpenAITarget:
    """The completions endpoint below a base URL such as http://127.0.0.1:8000/v1."""

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=None,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=False,
        )

    async def model(self) -> str:
        """The first model's name."""
        with _failures():
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.get("/models")
            await _check(response)
            models = response.json()["data"]
        if not models:
            raise LoadError("NO_MODEL", "the server serves no model")
        return str(models[0]["id"])

    async def generate(
        self,
        model: str,
        prompt: list[int],
        output_tokens: int,
        on_tokens: Callable[[], None],
        session_id: str = "",
    ) -> Answer:
        """Generate greedily past the end of sequence, which vLLM and its kin know how to ask for.

        An event may carry several tokens; how many there were in all, the usage tells. The dialect
        has no word for sessions.
        """
        body = {
            "model": model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = Answer(0)
        with _failures():
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream("POST", "/completions", json=body) as response,
            ):
                await _check(response)
                async for event in _events(response):
                    if _brings_text(event):
                        on_tokens()
                    if event.get("usage"):
                        answer = _answer(event["usage"])
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


async def _check(response: httpx.Response) -> None:
    if not response.is_success:
        content = (await response.aread()).decode(errors="replace")
        raise LoadError(f"HTTP_{response.status_code}", content[:_SHOWN_CHARACTERS])


async def _events(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream. Raises LoadError at an error event, or if the end is missing."""
    async for line in response.aiter_lines():
        if not line.startswith(_DATA):
            continue
        content = line.removeprefix(_DATA)
        if content == _DONE:
            return
        event = json.loads(content)
        if "error" in event:
            raise LoadError("ERROR_EVENT", content[:_SHOWN_CHARACTERS])
        yield event
    raise LoadError("CUT_OFF", "the stream ended before its end event")


def _answer(usage: dict[str, Any]) -> Answer:
    details = usage.get("prompt_tokens_details") or {}
    return Answer(usage["completion_tokens"], cached_tokens=details.get("cached_tokens"))


def _brings_text(event: dict[str, Any]) -> bool:
    # The last event of some servers says nothing but why the sample ended.
    return any(choice["text"] or not choice.get("finish_reason") for choice in event["choices"])


@contextmanager
def _failures() -> Iterator[None]:
    """Turns what can go wrong on the way into LoadError."""
    try:
        yield
    except TimeoutError as error:
        raise LoadError("DEADLINE_EXCEEDED", "no answer in time") from error
    except httpx.HTTPError as error:
        raise LoadError(type(error).__name__, str(error)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise LoadError("NOT_OPENAI", repr(error)) from error
