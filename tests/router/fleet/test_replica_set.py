"""What is reserved at the replica that a request is sent to."""

from collections.abc import Sequence
from typing import cast

import pytest

from cluster.prefix.directory import PrefixDirectory
from cluster.registry import ReplicaRecord
from router.decisions import Decisions
from router.fleet.load_estimate import LoadEstimate
from router.fleet.replica_link import ReplicaLink
from router.fleet.replica_set import ReplicaSet
from router.metrics import Metrics
from router.policies import C, Choice, RouteRequest
from tests.tokenizers_fixture import byte_level_tokenizer, model_card

RECORD = ReplicaRecord(replica_id="r", epoch=1, model="tiny", address="127.0.0.1:1")
CARD = model_card(byte_level_tokenizer())


class _AllButOneCached:
    """Believes that a replica has all of a prompt but its last token."""

    def choose(self, request: RouteRequest, candidates: Sequence[C]) -> Choice[C]:
        return Choice(candidates[0], "test", uncached_tokens=1)


class _Link:
    """A link that is ready and has nothing at its other end."""

    def __init__(self, estimate: LoadEstimate) -> None:
        self.member = RECORD.member
        self.estimate = estimate
        self.is_ready = True
        self.reserved: list[tuple[int, int]] = []

    def reserve(self, sequences: int, prefill_tokens: int) -> None:
        self.reserved.append((sequences, prefill_tokens))

    async def run(self) -> None:
        """Nothing to do."""


@pytest.mark.parametrize(("computes_all", "num_tokens"), [(False, 1), (True, 40)])
async def test_a_request_that_cannot_use_a_cached_prefix_is_booked_whole(
    computes_all: bool, num_tokens: int
) -> None:
    links: list[_Link] = []

    def make_link(_: ReplicaRecord, estimate: LoadEstimate, __: object) -> ReplicaLink:
        links.append(_Link(estimate))
        return cast(ReplicaLink, links[-1])

    decisions = Decisions("router", "test", Metrics())
    replicas = ReplicaSet(_AllButOneCached(), make_link, decisions, PrefixDirectory(16))
    replicas.follow([RECORD])
    request = RouteRequest(
        request_id="x", model=CARD, token_ids=range(40), computes_all=computes_all
    )
    assert replicas.choose(request, (), (), "new") is not None
    assert links[0].reserved == [(1, num_tokens)]
    await replicas.close()
