"""Client SDK of Trunkline, a serving cluster for large language models.

>>> from trunkline import Client
>>> with Client(address) as client:
...     print(client.generate("Once upon", max_tokens=2).text())
 one two

`AsyncClient` is the same for asyncio.
"""

from trunkline.aio import AsyncClient
from trunkline.aio_stream import AsyncStream
from trunkline.channel import TLS
from trunkline.client import Client
from trunkline.errors import (
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ModelNotFoundError,
    OverloadedError,
    PermissionDeniedError,
    RequestCancelledError,
    TrunklineError,
    UnauthenticatedError,
    UnavailableError,
)
from trunkline.options import Options
from trunkline.retry import RetryPolicy
from trunkline.stream import Stream
from trunkline.types import (
    CacheSource,
    Candidate,
    Delta,
    FinishReason,
    Message,
    Model,
    Timings,
    TokenLogprob,
    Usage,
)

__all__ = [
    "TLS",
    "AsyncClient",
    "AsyncStream",
    "CacheSource",
    "Candidate",
    "Client",
    "DeadlineExceededError",
    "Delta",
    "FinishReason",
    "InternalError",
    "InvalidArgumentError",
    "Message",
    "Model",
    "ModelNotFoundError",
    "Options",
    "OverloadedError",
    "PermissionDeniedError",
    "RequestCancelledError",
    "RetryPolicy",
    "Stream",
    "Timings",
    "TokenLogprob",
    "TrunklineError",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
]
