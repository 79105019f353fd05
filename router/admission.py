"""What stands between a checked request and a replica: the tenant's quota, and the queue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster.tenants import Tenant
from router.job import Job
from router.progress import Progress
from router.queue import Turn
from router.queue.queues import Queues, waiter_of
from router.quota import Quota


class Admission:
    """Lets requests through when their tenants may use so much and a replica has room."""

    def __init__(self, quota: Quota, queues: Queues) -> None:
        self._quota = quota
        self._queues = queues

    @asynccontextmanager
    async def turn(self, job: Job, tenant: Tenant, progress: Progress) -> AsyncIterator[Turn]:
        """Wait for the job's turn; at the end, what `progress` says it has used is settled.

        Raises RequestError: QUOTA_EXCEEDED, and as RequestQueue.turn.
        """
        waiter = waiter_of(job, tenant.name, tenant.limits.weight)
        reserving = self._quota.reserve(
            tenant,
            prompt_tokens=len(job.prompt_token_ids),
            n=job.n,
            max_tokens=job.options.stop.max_tokens,
        )
        async with reserving as use, self._queues.of(job.model).turn(waiter) as turn:
            try:
                yield turn
            finally:
                use.is_sent = turn.is_sent
                use.output_tokens = progress.completion_tokens
