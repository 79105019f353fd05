"""`trunkline.v1.Admin` over gRPC."""

from typing import Any

import grpc
from trunkline.v1 import admin_pb2 as admin
from trunkline.v1.admin_pb2_grpc import AdminServicer

from cluster.errors import RequestError, invalid
from router.auth import Authenticator
from router.decisions import Decisions
from router.grpc_errors import abort
from router.grpc_servicer import call_of

Context = grpc.aio.ServicerContext[Any, Any]

# Methods are coroutines.
# mypy: disable-error-code=override


class GrpcAdmin(AdminServicer):
    """Answers operators from what this router knows."""

    def __init__(self, decisions: Decisions, auth: Authenticator) -> None:
        self._decisions = decisions
        self._auth = auth

    async def Explain(  # noqa: N802
        self, request: admin.ExplainRequest, context: Context
    ) -> admin.ExplainResponse:
        """Why a request went where it went."""
        try:
            await self._auth.require_admin(call_of(context))
            if not request.request_id:
                raise invalid("request_id", "", "the id of a request")
            return admin.ExplainResponse(decisions=self._decisions.of_request(request.request_id))
        except RequestError as error:
            await abort(context, error)
