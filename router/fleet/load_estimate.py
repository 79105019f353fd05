"""How much a replica has to do, between one of its reports and the next."""

from trunkline.internal.v1 import replica_pb2 as internal


class LoadEstimate:
    """The replica's last report, corrected by what this router sent and got back since.

    The report may have left before our newest requests arrived; what this router has under way
    is therefore the least the estimate says.
    """

    def __init__(self) -> None:
        self._reported = 0
        self._since_report = 0
        self._own = 0

    @property
    def pending_sequences(self) -> int:
        """Sequences running or waiting there."""
        return max(self._reported + self._since_report, self._own)

    def report(self, load: internal.Load) -> None:
        """Take the replica's word for what it has."""
        self._reported = load.running_sequences + load.waiting_requests
        self._since_report = 0

    def add(self, sequences: int) -> None:
        """Book what is being sent there."""
        self._since_report += sequences
        self._own += sequences

    def remove(self, sequences: int) -> None:
        """Strike out what has ended there."""
        self._since_report -= sequences
        self._own -= sequences
