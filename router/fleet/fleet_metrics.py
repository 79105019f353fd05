"""What a router counts of replicas, and of the ways that requests take to them."""

from router.series import MODEL, Series


class FleetMetrics:
    """Series of one router's fleet."""

    def __init__(self, series: Series) -> None:
        self.dispatches = series.counter(
            "dispatches", "Requests sent to a replica, by why it was tried.", ("model", "cause")
        )
        self.hedges_won = series.counter(
            "hedges_won", "Requests that the second replica they were sent to began first."
        )
        self.routing_decisions = series.counter(
            "routing_decisions",
            "Choices of a replica, by what they went by.",
            ("model", "policy", "basis"),
        )
        self.load_exchange_failures = series.counter(
            "load_exchange_failures", "Times that other routers' load could not be read.", ()
        )
        self.registry_age = series.gauge(
            "registry_age_seconds", "Since the registry was read; grows while Redis is away."
        )
        self.replicas_ready = series.gauge("replicas_ready", "Replicas that take requests.", MODEL)
        self.breakers = series.gauge(
            "replica_breakers",
            "Replicas by the state of the breaker that keeps requests away from those that fail.",
            ("model", "state"),
        )
        self.prefix_blocks = series.gauge(
            "prefix_index_blocks", "KV blocks known to be cached by some replica.", MODEL
        )
        self.prefix_expected = series.gauge(
            "prefix_index_expected_blocks", "KV blocks that prompts just sent may leave.", MODEL
        )
        self.prefix_replicas = series.gauge(
            "prefix_index_replicas", "Replicas whose cached blocks are known.", MODEL
        )
        self.prefix_gaps = series.counter(
            "prefix_index_gaps", "Times that updates of a replica's cache were missing.", ()
        )
        self.prefix_resyncs = series.counter(
            "prefix_index_resyncs", "Times that all of a replica's cached blocks were read.", ()
        )
        self.prefix_age = series.gauge(
            "prefix_index_age_seconds", "Since Redis last said what replicas have cached."
        )
