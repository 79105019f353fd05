"""A workload against one policy, in virtual time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import NamedTuple

from cluster.model_card import ModelCard
from cluster.prefix.block_hash import block_hashes, root_hash
from cluster.prefix.events import CacheEvent
from ops.bench.load import Exchange
from ops.bench.workloads.session import Session, token_ids
from ops.simulate.engine import SimulatedEngine
from ops.simulate.oracle import Oracle
from ops.simulate.profile import EngineProfile
from ops.simulate.router import SimulatedRouter
from ops.simulate.sequence import SimulatedSequence
from ops.simulate.virtual_time import VirtualTime
from router.policies import POLICIES, Policy, Prefixes, RouteRequest

ORACLE = "oracle"
_VOCAB_SIZE = 32_000
_REPORT_S = 0.25
_EXCHANGE_S = 0.1
_INDEX_BLOCKS = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """What is simulated."""

    profile: EngineProfile
    replicas: int
    routers: int = 1
    """Each sees its own requests, and of the others' what these tell."""
    event_delay_s: float = 0.05
    """From a change of a replica's cache until routers know."""
    network_s: float = 0.0005
    """One way between a router and a replica."""


class Outcome(NamedTuple):
    """What came of a simulation."""

    exchanges: Sequence[Exchange]
    busy_s: Sequence[float]
    """Seconds that each replica has computed."""
    requests: Sequence[int]
    """That each replica has served."""


def simulate(cluster: Cluster, policy: str, sessions: Sequence[Session], seed: int) -> Outcome:
    """Serve all sessions, which start at their times; the same for the same seed.

    Raises ValueError for a policy that there is not, or a request that no replica can hold.
    """
    if policy != ORACLE and policy not in POLICIES:
        known = ", ".join([*POLICIES, ORACLE])
        raise ValueError(f"policy: got {policy!r}, expected one of {known}")
    return _Simulation(cluster, policy, sessions, seed).run()


@dataclass(slots=True)
class _Client:
    """A session as far as it has come."""

    session: Session
    turn: int = 0
    conversation: list[int] = field(default_factory=list)


class _Simulation:
    def __init__(
        self, cluster: Cluster, policy: str, sessions: Sequence[Session], seed: int
    ) -> None:
        self._cluster = cluster
        self._time = time = VirtualTime()
        self._random = Random(seed)
        members = [f"replica-{number}@1" for number in range(cluster.replicas)]
        self._engines: Mapping[str, SimulatedEngine] = {
            member: SimulatedEngine(time, cluster.profile, partial(self._publish, member))
            for member in members
        }
        self._policy = policy
        self._routers = [
            SimulatedRouter(
                time, members, _INDEX_BLOCKS, self._make_policy, Random(self._random.random())
            )
            for _ in range(cluster.routers)
        ]
        self._card = _card(cluster.profile)
        self._root = root_hash(self._card.fingerprint, self._card.block_size)
        self._exchanges: list[Exchange] = []
        self._num_open = len(sessions)
        for session in sessions:
            client = _Client(session)
            time.at(session.start_s, partial(self._ask, client))

    def run(self) -> Outcome:
        """Let the time pass until all is answered."""
        for member, engine in self._engines.items():
            first_s = self._random.uniform(0.0, _REPORT_S)
            self._time.every(_REPORT_S, first_s, partial(self._report, member, engine))
        if len(self._routers) > 1:
            for router in self._routers:
                first_s = self._random.uniform(0.0, _EXCHANGE_S)
                self._time.every(_EXCHANGE_S, first_s, partial(self._exchange, router))
        self._time.run(lambda: not self._num_open)
        engines = self._engines.values()
        return Outcome(
            self._exchanges,
            [engine.busy_s for engine in engines],
            [engine.num_requests for engine in engines],
        )

    def _make_policy(self, random: Random, prefixes: Prefixes) -> Policy:
        if self._policy == ORACLE:
            return Oracle(random, self._engines)
        return POLICIES[self._policy](random, prefixes)

    def _ask(self, client: _Client) -> None:
        """Send the client's next request, by any router."""
        session, turn = client.session, client.session.turns[client.turn]
        client.conversation += token_ids(turn.pieces, _VOCAB_SIZE)
        prompt = list(client.conversation)
        request = RouteRequest(
            request_id=f"{session.session_id}/{client.turn}",
            model=self._card,
            token_ids=prompt,
            session_id=session.session_id,
        )
        router = self._random.choice(self._routers)
        choice, booking = router.choose(request)
        estimate = choice.candidate.estimate
        client.conversation += session.answer(client.turn).token_ids(_VOCAB_SIZE)
        asked_s, network_s = self._time.now(), self._cluster.network_s
        first_s: list[float] = []

        def begin() -> None:
            first_s.append(self._time.now())
            estimate.begin(booking)

        def end() -> None:
            estimate.release(booking)
            now_s = self._time.now()
            self._exchanges.append(
                Exchange(
                    sent_s=asked_s,
                    arrivals_s=(first_s[0], now_s),
                    ended_s=now_s,
                    num_tokens=turn.output_tokens,
                    num_prompt_tokens=len(prompt),
                    cached_tokens=sequence.cached_tokens,
                )
            )
            self._go_on(client)

        sequence = SimulatedSequence(
            num_prompt_tokens=len(prompt),
            output_tokens=turn.output_tokens,
            hashes=block_hashes(self._root, client.conversation, self._card.block_size),
            on_first_token=lambda: self._time.after(network_s, begin),
            on_end=lambda: self._time.after(network_s, end),
        )
        engine = self._engines[choice.candidate.member]
        self._time.after(network_s, lambda: engine.submit(sequence))

    def _go_on(self, client: _Client) -> None:
        client.turn += 1
        if client.turn == len(client.session.turns):
            self._num_open -= 1
        else:
            pause_s = client.session.turns[client.turn].pause_s
            self._time.after(pause_s, lambda: self._ask(client))

    def _publish(self, member: str, events: Sequence[CacheEvent]) -> None:
        def hear() -> None:
            for router in self._routers:
                router.hear_events(member, events)

        self._time.after(self._cluster.event_delay_s, hear)

    def _report(self, member: str, engine: SimulatedEngine) -> None:
        load = engine.load()

        def hear() -> None:
            for router in self._routers:
                router.hear_load(member, load)

        self._time.after(self._cluster.network_s, hear)

    def _exchange(self, router: SimulatedRouter) -> None:
        router.hear_peers([other.unreported for other in self._routers if other is not router])


def _card(profile: EngineProfile) -> ModelCard:
    return ModelCard(
        name=profile.name,
        fingerprint=profile.name,
        max_model_len=profile.num_blocks * profile.block_size,
        vocab_size=_VOCAB_SIZE,
        block_size=profile.block_size,
        eos_token_ids=(),
        tokenizer_json="",
    )
