"""/v1/models."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from trunkline.v1 import inference_pb2 as pb

from cluster.errors import Reason, RequestError
from router.http.endpoint import call_of
from router.http.errors import json_response
from router.http.service import Service


class ModelsEndpoint:
    """Says which models can be asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._created = int(time.time())

    async def list(self, request: Request) -> Response:
        """All models."""
        known = await self._service.list_models(call_of(request))
        models = [self._content(model) for model in known.models]
        return json_response({"object": "list", "data": models})

    async def get(self, request: Request) -> Response:
        """One model. Raises RequestError if it is unknown."""
        name = request.path_params["model"]
        for model in (await self._service.list_models(call_of(request))).models:
            if model.name == name:
                return json_response(self._content(model))
        raise RequestError(
            Reason.MODEL_NOT_FOUND,
            f"model: {name!r} is not served here",
            field="model",
            value=name,
        )

    def _content(self, model: pb.Model) -> dict[str, Any]:
        content = {
            "id": model.name,
            "object": "model",
            "created": self._created,
            "owned_by": "trunkline",
            "max_model_len": model.max_model_len,
        }
        # Those that may answer, where the name is not a model's own; OpenAI has no such field.
        return content | {"models": list(model.models)} if model.models else content
