"""Requests of one session to one replica."""

from collections import OrderedDict
from collections.abc import Sequence
from random import Random

from router.policies.hash_ring import HashRing, load_bound
from router.policies.least_loaded import LeastLoaded
from router.policies.policy import C, Choice
from router.policies.route_request import RouteRequest

_MAX_SPILLED = 65_536


class Session:
    """Bounded consistent hashing by session: routers agree without a word, and none is hot.

    A session that did not find room at home stays where it went, and does not return when home
    has room again: its blocks are there. Requests of no session go to the least loaded replica.
    """

    def __init__(self, random: Random) -> None:
        self._ring = HashRing()
        self._spilled = OrderedDict[str, str]()
        self._least_loaded = LeastLoaded(random)

    def choose(self, request: RouteRequest, candidates: Sequence[C]) -> Choice[C]:
        """The session's replica, unless that has more than 1.25 times the mean to do."""
        session = request.session_id
        if not session:
            return self._least_loaded.choose(request, candidates)
        if (chosen := self._refuge(session, candidates)) is None:
            key = session.encode()
            chosen = self._ring.choose(key, candidates)
            self._note(session, chosen.member, home=self._ring.home(key))
        return Choice(chosen, "session", request.num_prompt_tokens)

    def _refuge(self, session: str, candidates: Sequence[C]) -> C | None:
        """Where the session has spilled to, if it can stay there."""
        if (member := self._spilled.get(session)) is None:
            return None
        self._spilled.move_to_end(session)
        bound = load_bound(candidates)
        return next(
            (c for c in candidates if c.member == member and c.load.pending_sequences < bound),
            None,
        )

    def _note(self, session: str, member: str, *, home: str) -> None:
        if member == home:
            self._spilled.pop(session, None)
            return
        self._spilled[session] = member
        self._spilled.move_to_end(session)
        if len(self._spilled) > _MAX_SPILLED:
            self._spilled.popitem(last=False)
