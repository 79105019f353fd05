"""A model that clients can ask for."""

from dataclasses import dataclass

from cluster.model_card import ModelCard
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
