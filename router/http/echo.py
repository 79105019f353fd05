"""The prompt as the beginning of a completion."""

from dataclasses import dataclass

from trunkline.v1 import inference_pb2 as pb

from cluster.errors import RequestError
from router.call import Call
from router.http.errors import in_openai_terms
from router.http.service import Service


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt's text."""

    text: str
    first_token: str
    """Text of its first token, which has no log-probability; it may be empty."""


async def echo_of(service: Service, model: str, prompt: str | list[int], call: Call) -> Echo:
    """The echo of a prompt given as text or token ids. Raises RequestError."""
    try:
        if isinstance(prompt, str):
            text = prompt
            asked = pb.TokenizeRequest(model=model, text=prompt)
            token_ids = list((await service.tokenize(asked, call)).token_ids)
        else:
            token_ids = prompt
            text = await _text(service, model, token_ids, call)
        return Echo(text, await _text(service, model, token_ids[:1], call))
    except RequestError as error:
        raise in_openai_terms(error, {"text": "prompt"}) from error


async def _text(service: Service, model: str, token_ids: list[int], call: Call) -> str:
    asked = pb.DetokenizeRequest(model=model, token_ids=token_ids)
    return (await service.detokenize(asked, call)).text
