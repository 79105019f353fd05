"""From the name that a client asks for to the models that may answer."""

from collections.abc import Sequence

from trunkline.v1 import inference_pb2 as pb

from cluster.errors import RequestError
from router.catalog.candidates import candidates, reachable
from router.catalog.follower import CatalogFollower
from router.fleet.fleet import Fleet
from router.fleet.served_model import ServedModel


class Models:
    """The models of the fleet under the names of the catalog.

    An entry of the catalog goes before a model of its name.
    """

    def __init__(self, fleet: Fleet, catalog: CatalogFollower) -> None:
        self._fleet = fleet
        self._catalog = catalog

    async def find(self, name: str, who: bytes) -> list[ServedModel]:
        """The models that are to answer, each if those before it cannot; at least one.

        The same `who` gets the same ones. Raises RequestError (as Fleet.find) if there is none.
        """
        if name and name not in self._catalog.entries and not self._fleet.knows(name):
            # It may have been entered a moment ago.
            await self._catalog.read()
        found, problem = [], None
        for candidate in candidates(self._catalog.entries, name, who):
            try:
                found.append(await self._fleet.find(candidate))
            except RequestError as error:
                problem = problem or error
        if problem is not None and not found:
            raise problem
        return found

    def listing(self) -> list[pb.Model]:
        """All names that can be asked for now, in order."""
        fleet = {model.name: model for model in self._fleet.models}
        listed = {name: _of_model(model) for name, model in fleet.items()}
        entries = self._catalog.entries
        for name in entries:
            known = [fleet[model] for model in reachable(entries, name) if model in fleet]
            if known:
                listed[name] = _of_entry(name, known)
        return [listed[name] for name in sorted(listed)]


def _of_model(model: ServedModel) -> pb.Model:
    return pb.Model(
        name=model.name,
        max_model_len=model.card.max_model_len,
        vocab_size=model.card.vocab_size,
        ready_replicas=model.replicas.num_ready,
    )


def _of_entry(name: str, models: Sequence[ServedModel]) -> pb.Model:
    """What holds whichever of the models answers."""
    return pb.Model(
        name=name,
        max_model_len=min(model.card.max_model_len for model in models),
        vocab_size=min(model.card.vocab_size for model in models),
        ready_replicas=sum(model.replicas.num_ready for model in models),
        models=[model.name for model in models],
    )
