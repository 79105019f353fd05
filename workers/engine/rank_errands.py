"""A rank's threads for errands, which neither its steps nor its heartbeats wait for."""

from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

from workers.engine.control_messages import ErrandDone, RunErrand
from workers.engine.redis_part import Errand, RedisPart


class RankErrands:
    """Takes errands as they come, and runs them once the rank has slots: reading and writing side
    by side, each in order."""

    def __init__(self, tell: Callable[[ErrandDone], None]) -> None:
        """`tell` is called when one is done, on any thread."""
        self._tell = tell
        self._reads: SimpleQueue[RunErrand] = SimpleQueue()
        self._writes: SimpleQueue[RunErrand] = SimpleQueue()

    def take(self, message: RunErrand) -> None:
        """From the leader."""
        (self._writes if message.what == "write" else self._reads).put(message)

    def start(self, part: RedisPart) -> None:
        """Run them from now on, as long as the process lives."""
        for name, queue in (("redis reader", self._reads), ("redis writer", self._writes)):
            Thread(target=self._run, args=(part, queue), name=name, daemon=True).start()

    def _run(self, part: RedisPart, queue: "SimpleQueue[RunErrand]") -> None:
        while True:
            message = queue.get()
            hashes = [bytes.fromhex(text) for text in message.hashes]
            outcome = part.run(Errand(message.what, hashes, message.slots))
            self._tell(ErrandDone(number=message.number, **outcome._asdict()))
