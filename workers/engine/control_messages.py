"""What leader and ranks tell each other over the control channel, as JSON."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from cluster.settings import EngineSettings


class Message(BaseModel):
    """Of whatever kind; unknown fields are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Challenge(Message):
    """From the leader, first of all: what a rank has to sign to be let in."""

    kind: Literal["challenge"] = "challenge"
    nonce: str


class Hello(Message):
    """From a rank: who it is, and where."""

    kind: Literal["hello"] = "hello"
    rank: int
    pid: int
    node: str
    """Address of its machine; ranks of the same one share memory."""
    num_cpus: int = Field(ge=1)
    """Cores that its process may use."""
    proof: str
    """That it knows the gang's token, see workers.engine.control_hello."""


class Setup(Message):
    """To a rank: all that it needs to load its share and to reach the other ranks."""

    kind: Literal["setup"] = "setup"
    model_dir: str
    settings: EngineSettings
    """With the threads and the share of memory of this one rank."""
    nodes: list[str]
    """Address of each rank's machine."""
    store: str
    """host:port of the leader's TCPStore, where ranks meet that share no memory."""
    device: int
    """Which of its machine's GPUs is this rank's, where it has any."""
    plans: "SharedPlans | None"
    """None has plans come over this channel."""


class SharedPlans(Message):
    """A ring that plans come by, see workers.engine.plan_ring."""

    path: str
    num_readers: int
    reader: int
    """Which of them this rank is."""


class Progress(Message):
    """From a rank that is loading."""

    kind: Literal["progress"] = "progress"
    done: int
    total: int


class Loaded(Message):
    """From a rank that has loaded its share."""

    kind: Literal["loaded"] = "loaded"
    num_blocks: int
    """That its memory has room for."""
    num_slots: int
    """The same in host memory."""


class Start(Message):
    """To a rank: make the cache, then follow plans."""

    kind: Literal["start"] = "start"
    num_blocks: int
    """On all ranks."""
    num_slots: int
    """The same in host memory."""


class RunErrand(Message):
    """To a rank: something to do with Redis, see workers.engine.redis_part.Errand."""

    kind: Literal["run_errand"] = "run_errand"
    number: int
    what: Literal["look", "read", "write"]
    hashes: list[str]
    """In hexadecimal digits."""
    slots: list[int]


class ErrandDone(Message):
    """From a rank: what came of it, see workers.engine.redis_part.Outcome."""

    kind: Literal["errand_done"] = "errand_done"
    number: int
    num_blocks: int
    num_bytes: int
    num_corrupt: int
    num_refused: int
    error: str


class Failed(Message):
    """From a rank, its last word."""

    kind: Literal["failed"] = "failed"
    error: str
    """One line."""


class Dump(Message):
    """To a rank: write to the log what all threads are doing."""

    kind: Literal["dump"] = "dump"


class Stop(Message):
    """To a rank: leave."""

    kind: Literal["stop"] = "stop"


AnyMessage = (
    Challenge
    | Hello
    | Setup
    | Progress
    | Loaded
    | Start
    | RunErrand
    | ErrandDone
    | Failed
    | Dump
    | Stop
)

_ADAPTER: TypeAdapter[AnyMessage] = TypeAdapter(Annotated[AnyMessage, Field(discriminator="kind")])


def parse(text: bytes) -> AnyMessage:
    """The message in a frame. Raises pydantic.ValidationError (a ValueError)."""
    return _ADAPTER.validate_json(text)
