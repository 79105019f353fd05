"""A replica as a policy sees it."""

from dataclasses import dataclass

from router.policies import ReplicaLoad


@dataclass
class Seen:
    """What a test says that it is."""

    member: str
    load: ReplicaLoad
