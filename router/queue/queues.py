"""The queues of one router, one for each model."""

from cluster.settings import RouterSettings
from router.fleet.served_model import ServedModel
from router.job import Job
from router.metrics import Metrics
from router.queue import DISCIPLINES
from router.queue.fair import PROMPT_WEIGHT
from router.queue.places import Places
from router.queue.request_queue import RequestQueue
from router.queue.waiter import Waiter


class Queues:
    """Makes a queue when a model is first asked for."""

    def __init__(self, settings: RouterSettings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._places = Places(settings.max_in_flight)
        self._queues: dict[str, RequestQueue] = {}
        self._is_open = True

    def of(self, model: ServedModel) -> RequestQueue:
        """Where requests for a model wait."""
        queue = self._queues.get(model.name)
        if queue is None:
            queue = self._queues[model.name] = self._make(model)
        return queue

    def close(self) -> None:
        """Let nobody through any more, and send away those that wait."""
        self._is_open = False
        for queue in self._queues.values():
            queue.close()

    def _make(self, model: ServedModel) -> RequestQueue:
        queue = RequestQueue(
            DISCIPLINES[self._settings.queue](),
            model.replicas,
            self._places,
            max_queued=self._settings.max_queued,
            max_waiting_s=self._settings.max_waiting_s,
            on_wait=self._metrics.queue_wait.labels(model.name).observe,
        )
        self._metrics.queue_length.labels(model.name).set_function(lambda: len(queue))
        if not self._is_open:
            queue.close()
        return queue


def waiter_of(job: Job, tenant: str, weight: float) -> Waiter:
    """A job as queues see it."""
    return Waiter(
        tenant=tenant,
        weight=weight,
        priority=job.options.priority,
        deadline=job.deadline,
        tokens=PROMPT_WEIGHT * len(job.prompt_token_ids),
        sequences=job.n,
    )
