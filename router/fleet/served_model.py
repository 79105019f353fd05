"""A model that clients can ask for."""

from dataclasses import dataclass

from cluster.model_card import ModelCard
from cluster.prefix.directory import PrefixDirectory
from router.fleet.replica_set import ReplicaSet
from router.text.codec import TextCodec


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model's card, its text side and its replicas."""

    card: ModelCard
    codec: TextCodec
    replicas: ReplicaSet

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.card.name

    @property
    def prefixes(self) -> PrefixDirectory:
        """Which of its replicas holds how much of a prompt."""
        return self.replicas.prefixes
