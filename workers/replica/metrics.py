"""A replica's Prometheus metrics, on an HTTP endpoint of its own."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from workers.engine.load import Load
from workers.engine.tier_stats import TierStats
from workers.replica.step_engine import StepStats

_STEP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)


class ReplicaMetrics:
    """Serves what the engine counts; values are read when they are asked for."""

    def __init__(self, model: str, replica_id: str) -> None:
        self._labels = {"model": model, "replica": replica_id}
        self._registry = CollectorRegistry()
        self._step_seconds = Histogram(
            "trunkline_replica_step_seconds",
            "Time of one engine step.",
            labelnames=tuple(self._labels),
            buckets=_STEP_BUCKETS_S,
            registry=self._registry,
        ).labels(**self._labels)

    def observe_step(self, seconds: float) -> None:
        """Count a step."""
        self._step_seconds.observe(seconds)

    def serve(
        self, host: str, stats: Callable[[], StepStats], load: Callable[[], Load]
    ) -> tuple[str, Callable[[], None]]:
        """Start the endpoint; returns its host:port and what stops it (blocking)."""
        self._registry.register(_EngineCollector(self._labels, stats, load))
        server, thread = start_http_server(0, host, self._registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return f"{host}:{server.server_port}", stop


class _EngineCollector(Collector):
    """Turns an engine's counters into metrics."""

    def __init__(
        self, labels: dict[str, str], stats: Callable[[], StepStats], load: Callable[[], Load]
    ) -> None:
        self._labels = labels
        self._stats = stats
        self._load = load

    def collect(self) -> Iterator[Metric]:
        """All metrics but the histogram of steps."""
        stats, load = self._stats(), self._load()
        used = 1.0 - load.free_blocks / load.total_blocks if load.total_blocks else 0.0
        gauge, counter = self._gauge, self._counter
        yield gauge("running_sequences", "Sequences being computed.", load.running_sequences)
        yield gauge("waiting_requests", "Requests that wait in the engine.", load.waiting_requests)
        yield gauge(
            "queued_prefill_tokens", "Prompt tokens to be computed.", load.queued_prefill_tokens
        )
        yield gauge("cache_usage_ratio", "Share of KV blocks that running requests hold.", used)
        yield gauge("cache_blocks", "KV blocks in all.", load.total_blocks)
        yield counter("prefill_tokens", "Prompt tokens computed.", stats.prefill_tokens)
        yield counter("generated_tokens", "Tokens sampled.", stats.decode_tokens)
        yield counter("prompt_tokens", "Prompt tokens of requests taken up.", stats.prompt_tokens)
        yield counter(
            "prefix_hit_tokens", "Prompt tokens found in the prefix cache.", stats.hit_tokens
        )
        yield from self._tiers(stats.hit_tokens, stats.tiers)
        yield counter("preemptions", "Sequences that lost their blocks.", stats.preemptions)
        yield counter("failed_samples", "Samples that went wrong alone.", stats.failed_samples)
        yield self._expert_rows(stats.expert_rows)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"trunkline_replica_{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"trunkline_replica_{name}", text, labels=list(self._labels))
        family.add_metric(list(self._labels.values()), value)
        return family

    def _tiers(self, hit_tokens: int, tiers: TierStats) -> Iterator[Metric]:
        """Where prefixes were found, and what went from tier to tier."""
        below = {"host": tiers.host_hit_tokens, "redis": tiers.redis_hit_tokens}
        yield self._by(
            "tier",
            "tier_hit_tokens",
            "Prompt tokens found in the prefix cache, by the tier that had them.",
            {"device": hit_tokens - sum(below.values()), **below},
        )
        yield self._by(
            "way",
            "tier_blocks",
            "KV blocks moved: saved to and loaded from host memory, written to and fetched from "
            "Redis.",
            {
                "saved": tiers.blocks_saved,
                "loaded": tiers.blocks_loaded,
                "written": tiers.blocks_written,
                "fetched": tiers.blocks_fetched,
            },
        )
        yield self._by(
            "way",
            "tier_redis_bytes",
            "Bytes of KV blocks written to and fetched from Redis.",
            {"written": tiers.bytes_written, "fetched": tiers.bytes_fetched},
        )
        yield self._counter("tier_fetches", "Requests that Redis was asked for.", tiers.fetches)
        yield self._by(
            "what",
            "tier_failures",
            "Blocks that were not kept, fetches that brought nothing, and values that were wrong.",
            {
                "save_dropped": tiers.blocks_dropped,
                "write_dropped": tiers.writes_dropped,
                "write_failed": tiers.writes_failed,
                "fetch_failed": tiers.fetches_failed,
                "fetch_timed_out": tiers.fetches_timed_out,
                "value_corrupt": tiers.values_corrupt,
            },
        )

    def _by(self, label: str, name: str, text: str, values: dict[str, int]) -> Metric:
        labels = [*self._labels, label]
        family = CounterMetricFamily(f"trunkline_replica_{name}", text, labels=labels)
        for value, count in values.items():
            family.add_metric([*self._labels.values(), value], count)
        return family

    def _expert_rows(self, by_layer: dict[int, list[int]]) -> Metric:
        labels = [*self._labels, "layer", "expert"]
        text = "Rows routed to each expert, of the last pipeline stage's layers."
        family = CounterMetricFamily("trunkline_replica_expert_rows", text, labels=labels)
        for layer, rows in by_layer.items():
            for expert, count in enumerate(rows):
                family.add_metric([*self._labels.values(), str(layer), str(expert)], count)
        return family
