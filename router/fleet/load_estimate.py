"""How much a replica has to do, between one of its reports and the next."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from trunkline.internal.v1 import replica_pb2 as internal

from cluster.reservations import Reserved
from router.fleet.prefill_rates import PrefillRates
from router.policies.replica_load import ReplicaLoad

_FIRST_TOKENS = 16
"""Output tokens by which running decodes are felt: an answer is read from its first words on."""
_RUNNING_PER_WAITING = 8
"""Sequences that run for each that waits at the replica, lest it idle until it is sent more."""
_RUN_WEIGHT = 0.1
"""Of the newest request in the moving average of how long sequences run."""
_RUN_FIRST_S = 1.0


@dataclass(slots=True, eq=False)
class Booking:
    """A request that was sent to a replica, or is about to be."""

    sequences: int
    prefill_tokens: int
    report: int
    """Number of the last report before it."""
    began_at: float | None = None
    """When its first token came, on the estimate's clock."""


class LoadEstimate:
    """The replica's last report, corrected by what routers sent and got back since.

    The report may have left before our newest requests arrived; what this router has under way
    is therefore the least the estimate says.
    """

    def __init__(
        self, member: str, rates: PrefillRates, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.load = ReplicaLoad()
        """The estimate, renewed with every change."""
        self.member = member
        self._rates = rates
        self._clock = clock
        self._report = internal.Load()
        self._num_reports = 0
        self._run_s = _RUN_FIRST_S
        self._own_sequences = 0
        self._sequences_since = 0
        self._tokens_since = 0
        self._unreported = Reserved()
        self._before = Reserved()
        """What was unreported until the last report came, which may have left before it."""
        self._peers = Reserved()

    @property
    def unreported(self) -> Reserved:
        """What this router has sent there since the last report."""
        return self._unreported

    @property
    def room(self) -> float:
        """Sequences that may be sent there until it has enough, a few that wait there included.

        What waits at the router instead is in the router's order, and finds whoever is free first.
        """
        most = self._report.max_running_sequences
        return self._left(most + 1 + most // _RUNNING_PER_WAITING)

    @property
    def room_to_run(self) -> float:
        """Of these, sequences that need not wait there."""
        return self._left(self._report.max_running_sequences)

    def _left(self, bound: int) -> float:
        """Of so many sequences, those that are not there; endless while no bound is known."""
        if not self._report.max_running_sequences:
            return math.inf
        return max(0, bound - self.load.pending_sequences)

    def report(self, load: internal.Load) -> None:
        """Take the replica's word for what it has."""
        self._report = load
        self._num_reports += 1
        self._rates.learn_decode(self.member, load.decode_tokens_per_s)
        self._rates.learn(self.member, load.prefill_tokens_per_s)
        self._sequences_since = self._tokens_since = 0
        self._before, self._unreported = self._unreported, Reserved()
        self._renew()

    def share(self, peers: Reserved) -> None:
        """Take other routers' word for what they have sent there."""
        if peers != self._peers:
            self._peers = peers
            self._renew()

    def book(self, sequences: int, prefill_tokens: int) -> Booking:
        """Count what is being sent there, until it is released."""
        booking = Booking(sequences, prefill_tokens, self._num_reports)
        self._own_sequences += sequences
        self._sequences_since += sequences
        self._tokens_since += prefill_tokens
        self._shift(booking, sequences, prefill_tokens)
        self._renew()
        return booking

    def begin(self, booking: Booking) -> None:
        """Note that its first token has come: the prompt is computed."""
        if booking.began_at is None:
            booking.began_at = self._clock()
            self._tokens_since -= booking.prefill_tokens
            self._shift(booking, 0, -booking.prefill_tokens)
            self._renew()

    def release(self, booking: Booking) -> None:
        """Strike out what has ended there."""
        self._own_sequences -= booking.sequences
        self._sequences_since -= booking.sequences
        if booking.began_at is None:
            self._tokens_since -= booking.prefill_tokens
            self._shift(booking, -booking.sequences, -booking.prefill_tokens)
        else:
            run_s = self._clock() - booking.began_at
            self._run_s += _RUN_WEIGHT * (run_s - self._run_s)
            self._shift(booking, -booking.sequences, 0)
        self._renew()

    def _shift(self, booking: Booking, sequences: int, tokens: int) -> None:
        """Change what the replica's reports may not show yet."""
        if booking.report == self._num_reports:
            s, t = self._unreported
            self._unreported = Reserved(s + sequences, t + tokens)
        elif booking.report == self._num_reports - 1:
            s, t = self._before
            self._before = Reserved(s + sequences, t + tokens)

    def _renew(self) -> None:
        report = self._report
        reported = report.running_sequences + report.waiting_requests
        pending = max(reported + self._sequences_since, self._own_sequences)
        pending += self._peers.sequences
        recent = self._before.prefill_tokens + self._unreported.prefill_tokens
        queued = max(report.queued_prefill_tokens + self._tokens_since, recent)
        queued += self._peers.prefill_tokens
        self.load = ReplicaLoad.of(
            pending_sequences=pending,
            queued_prefill_tokens=queued,
            prefill_tokens_per_s=self._rates.believed(self.member),
            typical_tokens_per_s=self._rates.typical,
            place_ms=self._place_ms(pending),
            decode_ms=self._decode_ms(pending),
            fetch_tokens_per_s=report.fetch_tokens_per_s,
        )

    def _place_ms(self, pending: int) -> float:
        """Until one more sequence may run, by Little's law."""
        places = self._report.max_running_sequences
        excess = pending + 1 - places
        return 1e3 * self._run_s * excess / places if places and excess > 0 else 0.0

    def _decode_ms(self, pending: int) -> float:
        """What its sequences take from the first steps of one more, which it shares with them."""
        best = self._rates.best_decode
        if not best:
            return 0.0
        running = min(pending, self._report.max_running_sequences or pending)
        return 1e3 * _FIRST_TOKENS * running / best
