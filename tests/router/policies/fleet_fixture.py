"""Replicas that a test loads and empties, with the router's own estimate of each."""

from collections.abc import Sequence

from trunkline.internal.v1 import replica_pb2 as internal

from router.fleet.load_estimate import LoadEstimate
from router.fleet.prefill_rates import PrefillRates
from router.policies import Choice, Policy, ReplicaLoad, RouteRequest
from tests.tokenizers_fixture import byte_level_tokenizer, model_card

CARD = model_card(byte_level_tokenizer())


class Replica:
    """A replica as a policy sees it, by the estimate that routers make."""

    def __init__(self, member: str, rates: PrefillRates) -> None:
        self.member = member
        self.estimate = LoadEstimate(member, rates)

    @property
    def load(self) -> ReplicaLoad:
        """What it has to do."""
        return self.estimate.load

    def report(
        self,
        *,
        rate: float = 0.0,
        decode: float = 0.0,
        running: int = 0,
        queued: int = 0,
        fetch: float = 0.0,
    ) -> None:
        """Say how busy it is."""
        self.estimate.report(
            internal.Load(
                running_sequences=running,
                queued_prefill_tokens=queued,
                prefill_tokens_per_s=rate,
                decode_tokens_per_s=decode,
                fetch_tokens_per_s=fetch,
                max_running_sequences=64,
            )
        )


def replicas(*rates: float, decode: float = 0.0) -> list[Replica]:
    """Idle replicas that have learned these rates."""
    shared = PrefillRates()
    made = [Replica(f"replica-{index}@1", shared) for index in range(len(rates))]
    for _ in range(2):  # what the first has learned is news to those before it
        for replica, rate in zip(made, rates, strict=True):
            replica.report(rate=rate, decode=decode)
    return made


def request(
    token_ids: Sequence[int], *, session_id: str = "", adapter: str = "", n: int = 1
) -> RouteRequest:
    """A request for this prompt."""
    return RouteRequest(
        request_id="r", model=CARD, token_ids=token_ids, session_id=session_id, adapter=adapter, n=n
    )


def send(policy: Policy, wanted: RouteRequest, fleet: Sequence[Replica]) -> Choice[Replica]:
    """Choose, and book it there."""
    choice = policy.choose(wanted, fleet)
    choice.candidate.estimate.book(wanted.n, choice.uncached_tokens)
    return choice
