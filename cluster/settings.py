"""All settings: one tree, one YAML file, environment overrides by the same path.

``TRUNKLINE__ROUTER__GRPC_PORT=9000`` overrides ``router.grpc_port`` of the file.
"""

from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

QuantizationScheme = Literal["none", "int8", "int8_weight_only", "int4"]
"""How a linear layer's weight is kept: as it is stored, as int8 with int8 activations, as int8
alone, or as int4 in groups with int8 activations."""


def one_address(text: str) -> str:
    """`text`, if it is an IPv4 address of one interface. Raises ValueError otherwise."""
    if IPv4Address(text).is_unspecified:
        raise ValueError("expected the IPv4 address of one interface, not of all")
    return text


class Section(BaseModel):
    """A branch of the tree; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class RedisSettings(Section):
    """Where the cluster's shared state lives."""

    url: str | None = None
    """redis://, rediss:// or unix:// URL; without one, `trunkline serve` starts its own."""
    port: int = Field(default=6381, ge=1, le=65535)
    """Port of our own at ray.node_address; without that address it has none, but a socket file."""
    namespace: str = Field(default="trunkline", pattern=r"^[a-z0-9-]{1,40}$")
    """Prefix of every key, so that clusters can share a server."""


class ResponseCacheSettings(Section):
    """Answers that were given before, kept in the cluster's Redis for each tenant."""

    enabled: bool = False
    """Answer a request that is greedy or has a seed like the same request before."""
    ttl_s: PositiveFloat = 3600.0
    """How long an answer is kept."""
    max_answer_bytes: PositiveInt = 256 * 1024
    """Size of the largest answer that is kept."""
    max_bytes: PositiveInt = 64 * 1024**2
    """Size of all answers to one tenant, or to those of one group; beyond it, the oldest go."""

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.max_answer_bytes > self.max_bytes:
            raise ValueError(
                f"max_answer_bytes: got {self.max_answer_bytes}, "
                f"expected at most max_bytes ({self.max_bytes})"
            )
        return self


class SemanticCacheSettings(Section):
    """Answers to prompts that mean nearly the same, for one model."""

    threshold: float = Field(default=0.95, gt=0, le=1)
    """Cosine between the embeddings of two prompts from which on one gets the other's answer. What
    it should be depends on model and prompts: measure it."""
    ttl_s: PositiveFloat = 3600.0
    """How long an answer is kept."""
    max_entries: int = Field(default=1000, ge=1, le=65536)
    """Answers kept for one tenant, or one group of tenants, and the same options; beyond it, the
    oldest go."""
    embedding_model: str | None = None
    """Name of the served model that embeds prompts; without it, the model itself."""
    embedding_timeout_s: PositiveFloat = 10.0
    """How long embedding a prompt may take before the request goes on without it."""


class RouterSettings(Section):
    """The front door."""

    host: str = "127.0.0.1"
    """Address that both servers bind to."""
    grpc_port: int = Field(default=50051, ge=0, le=65535)
    """Port of the gRPC server; 0 takes a free one."""
    http_port: int = Field(default=8000, ge=0, le=65535)
    """Port of the OpenAI HTTP server; 0 takes a free one."""
    processes: PositiveInt = 1
    """Processes that share both ports on this machine: each gets some of the connections, and all
    limits of this section hold for each of them."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Port at which the first process serves its metrics, and nothing else; the next one's is the
    next port, and so on. /metrics of the HTTP server are those of whichever process answers."""
    require_api_key: bool = False
    """Refuse requests without the API key of a tenant (`trunkline tenant`). Without this, keys are
    not looked at, and everybody may do everything."""
    policy: Literal[
        "prefix", "session", "adapter", "least_loaded", "power_of_two", "random", "round_robin"
    ] = "prefix"
    """How a replica is chosen: prefix takes the one that is predicted to answer first, session
    keeps sessions together and adapter requests for one adapter; the others need no explanation."""
    queue: Literal["fcfs", "priority", "deadline", "fair"] = "fair"
    """Whose turn it is when a replica has room: who came first, has the highest priority, has the
    earliest deadline, or belongs to the tenant that was served least for its weight."""
    max_queued: int = Field(default=1024, ge=0)
    """Requests for one model that may wait for a replica with room. If there are more, the one
    whose turn would come last is refused with RESOURCE_EXHAUSTED."""
    max_in_flight: PositiveInt = 1024
    """Requests at replicas, for all models; more wait, as if replicas had no room."""
    max_waiting_s: PositiveFloat = 30.0
    """How long a request may wait for a replica to become ready."""
    max_attempts: PositiveInt = 3
    """Replicas tried for a request whose replica was lost before the first token."""
    max_moves: int = Field(default=5, ge=0)
    """Times that a sample which has begun is continued on another replica."""
    stall_s: PositiveFloat = 30.0
    """A request that has begun and gets no token for this long is continued on another replica, if
    there is one."""
    retry_backoff_s: PositiveFloat = 0.05
    """Pause before a request is sent to another replica after one has failed it; it doubles each
    time, up to 2 s, and is shortened at random by up to half."""
    retry_share: float = Field(default=0.2, ge=0, le=1)
    """Retries that there may be for each request, in the long run; 10 a second are always free."""
    retry_burst: PositiveInt = 1024
    """Retries that may come at once, as when a replica with many requests is lost."""
    breaker_failures: PositiveInt = 5
    """A replica that has failed so many requests in a row gets none for a while."""
    breaker_cooldown_s: PositiveFloat = 5.0
    """That while; then one request tries it."""
    hedge_after_s: PositiveFloat | None = None
    """A request without a token after this long is also sent to a second replica, and the first to
    answer has it; without a value, none is."""
    max_request_s: PositiveFloat = 3600.0
    """How long a request may take, whatever deadline it sets itself."""
    client_stall_s: PositiveFloat = 60.0
    """A client that has not taken what is ready for it for this long counts as gone."""
    replica_silence_s: PositiveFloat = 5.0
    """A replica that has sent nothing on its stream for this long counts as lost."""
    drain_timeout_s: PositiveFloat = 60.0
    """How long running requests may take after SIGTERM."""
    max_prompt_bytes: PositiveInt = 4 * 1024 * 1024
    """Size of the largest request message accepted."""
    response_cache: ResponseCacheSettings = ResponseCacheSettings()
    semantic_cache: dict[str, SemanticCacheSettings] = {}
    """By model: whether a request that could be answered from the response cache may also get the
    answer of one that means nearly the same, and when."""
    max_index_blocks: PositiveInt = 2**21
    """KV blocks, rounded up to a power of two, of which a router knows the replicas that hold them,
    for each model. Beyond that, those not asked for or stored for longest are forgotten. Up to 28
    bytes each with 64 replicas, and 8 more with every further 64."""


class ParallelSettings(Section):
    """How one model is divided among ranks, each with a processor or GPU of its own.

    The product is the number of ranks of a replica.
    """

    tensor: PositiveInt = 1
    """Parts that every weight matrix is cut into."""
    pipeline: PositiveInt = 1
    """Stages of consecutive layers."""
    expert: PositiveInt = 1
    """Parts that the experts of each layer are dealt out to; these also divide all else, like
    tensor."""
    sequence: PositiveInt = 1
    """Parts that long prompts and their KV blocks are divided into."""


class RedisCacheSettings(Section):
    """Keys and values of prefixes in Redis, where all replicas find what one has computed."""

    url: str | None = None
    """redis://, rediss:// or unix:// URL; without one, `trunkline serve` starts a server if it is
    told how large (max_bytes). It is to be a server of its own, with maxmemory and maxmemory-policy
    allkeys-lru, and not the cluster's (redis.url), which must not lose any keys."""
    max_bytes: PositiveInt | None = None
    """Memory of the server that is started, where url is not set; without either, nothing is kept.
    Of a server with a URL and no maxmemory: nothing more is written to it when it uses this much,
    or 4 GiB where this is not set."""
    port: int = Field(default=6382, ge=1, le=65535)
    """Port of our own at ray.node_address; without that address it has none, but a socket file."""

    @property
    def is_ours(self) -> bool:
        """Whether `trunkline serve` is to start the server."""
        return self.url is None and self.max_bytes is not None

    @property
    def is_used(self) -> bool:
        """Whether anything is kept there."""
        return self.url is not None or self.is_ours


_HOST_TIER_BYTES = 1024**3
"""Where blocks come from Redis and nothing is said of host memory."""


class EngineSettings(Section):
    """One replica's engine."""

    parallel: ParallelSettings = ParallelSettings()
    spare_experts: int = Field(default=0, ge=0)
    """Experts of each layer that an expert rank holds beside its own: copies of the busiest, dealt
    out anew when the engine has nothing to do."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of weights and activations; auto takes the checkpoint's."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    quantization: QuantizationScheme = "none"
    """Of linear layers that the checkpoint does not store quantized; int4 leaves the head int8."""
    quantization_group_size: Literal[32, 64, 128] = 32
    """Inputs that share a scale, for int4."""
    quantization_overrides: dict[str, QuantizationScheme] = Field(default_factory=dict)
    """Exceptions by glob pattern on the checkpoint's module names, such as "*.down_proj": "int8" or
    "lm_head": "none"; of several that match, the last one holds."""
    kv_cache_dtype: Literal["auto", "int8"] = "auto"
    """Type of cached keys and values; auto takes that of the activations."""
    block_size: PositiveInt = 16
    """Tokens in one KV block."""
    kv_cache_bytes: PositiveInt | None = None
    """Memory for KV blocks on each rank; without it, a share of what is free."""
    cpu_memory_share: float | None = Field(default=None, gt=0, le=1)
    """That share, on a CPU; without it, what leaves room for this machine's other ranks. In a
    cluster of several machines, half of what goes with the cores that the rank reserves."""
    host_cache_bytes: int | None = Field(default=None, ge=0)
    """Host memory on each rank for blocks that had to leave the KV cache, from which they come back
    without being computed again; without a value, 1 GiB if there is a redis_cache and else none. 0
    keeps none: on a CPU the KV cache is in host memory itself, and a larger one (kv_cache_bytes)
    does the same, but for what comes from Redis."""
    redis_cache: RedisCacheSettings = RedisCacheSettings()
    """What is kept beyond this replica; it comes and goes through host memory."""
    max_model_len: PositiveInt | None = None
    """Tokens of prompt and output together; without one, what the model was made for."""
    max_num_seqs: PositiveInt = 256
    """Sequences in one step."""
    max_num_batched_tokens: PositiveInt = 2048
    """Token budget of one step."""
    max_waiting_requests: PositiveInt = 1024
    """Requests that wait in the engine; more are refused."""
    enable_prefix_caching: bool = True
    """Reuse the KV blocks of equal prompt prefixes."""
    attention: Literal["auto", "native", "reference", "sdpa"] = "auto"
    """Implementation of attention."""
    deterministic: bool = False
    """Give a request bit-equal logits alone and in any batch, however its prompt is cut up; costs
    long prompts some time. Needs the CPU kernels."""
    packed_cache_bytes: int = Field(default=32 * 1024**3, ge=0)
    """Disk for weights as the CPU kernels read them, which make the next start quick; 0 keeps none.
    They lie in the user's cache directory; the least recently used go first."""
    num_threads: PositiveInt | None = None
    """Compute threads of each rank; without one, the cores divided among all ranks of this machine.
    In a cluster of several machines, as many as the rank reserves."""

    @model_validator(mode="after")
    def _check_redis_cache(self) -> Self:
        if not self.redis_cache.is_used:
            return self
        if not self.host_tier_bytes:
            raise ValueError("redis_cache: needs host_cache_bytes, through which blocks travel")
        if not self.enable_prefix_caching:
            raise ValueError("redis_cache: got one, but enable_prefix_caching is off")
        return self

    @property
    def host_tier_bytes(self) -> int:
        """Host memory for blocks, on each rank."""
        if self.host_cache_bytes is not None:
            return self.host_cache_bytes
        return _HOST_TIER_BYTES if self.redis_cache.is_used else 0


class ReplicaSettings(Section):
    """How replicas live on Ray."""

    count: int = Field(default=1, ge=0)
    """Replicas to run."""
    host: str = "auto"
    """Address that a replica's servers bind to and that it registers; auto takes 127.0.0.1 on a
    lone machine, and in a cluster of several the address by which its machine has joined."""
    lease_s: PositiveFloat = 3.0
    """A replica that has not renewed its lease for this long gets no traffic."""
    drain_timeout_s: PositiveFloat = 60.0
    """How long running requests may take when a replica is stopped."""
    num_cpus: PositiveFloat = 1.0
    """Ray CPUs that each rank of a replica reserves."""
    node_labels: dict[str, str] = Field(default_factory=dict)
    """Labels that Ray nodes must have to run replicas; values may be Ray's expressions, such as
    "!spot" or "in(a, b)"."""
    placement_timeout_s: PositiveFloat = 60.0
    """How long new replicas may wait for nodes with room for them; then the start or the update
    fails."""
    max_step_s: PositiveFloat = 120.0
    """A replica whose engine has been in one step for this long is taken for hung and replaced."""


class RaySettings(Section):
    """The Ray cluster that replicas live on."""

    address: str | None = None
    """host:port of a running cluster's head; without one, `trunkline serve` starts its own."""
    node_address: Annotated[str, AfterValidator(one_address)] | None = None
    """This machine's IPv4 address that other machines reach it by: with one, `trunkline serve`
    starts the head of a cluster that they can join (`trunkline node`); without one, all stays on
    this machine."""
    port: int = Field(default=6380, ge=1, le=65535)
    """Port at node_address that other machines join at."""
    num_cpus: int | None = Field(default=None, ge=0)
    """CPUs that this machine offers to replicas; without one, its cores if others can join, and on
    a lone machine more than enough, for replicas share its cores as they like."""
    object_store_bytes: PositiveInt = 80 * 1024 * 1024
    """Shared memory of a cluster of our own; no request passes through it."""


class LogSettings(Section):
    """Structured logs."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written."""
    format: Literal["console", "json"] = "console"
    """For people or for machines."""


class ModelSettings(Section):
    """One more model of the cluster."""

    model: str
    """Directory of a model in Hugging Face format, or `demo` for the built-in one."""
    model_name: str | None = None
    """Name under which clients ask for it; without one, the directory's name."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """What differs from the section engine for this model."""
    replica: dict[str, Any] = Field(default_factory=dict)
    """What differs from the section replica for this model."""


class Settings(BaseSettings):
    """The whole tree."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="TRUNKLINE__",
        env_nested_delimiter="__",
        use_attribute_docstrings=True,
    )

    model: str = "demo"
    """Directory of a model in Hugging Face format, or `demo` for the built-in one."""
    model_name: str | None = None
    """Name under which clients ask for it; without one, the directory's name."""
    models: tuple[ModelSettings, ...] = ()
    """More models, each with replicas of its own."""
    redis: RedisSettings = RedisSettings()
    router: RouterSettings = RouterSettings()
    engine: EngineSettings = EngineSettings()
    replica: ReplicaSettings = ReplicaSettings()
    ray: RaySettings = RaySettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _check_servers(self) -> Self:
        url = self.engine.redis_cache.url
        if url is not None and url == self.redis.url:
            raise ValueError(
                "engine.redis_cache.url: is that of redis.url, which must lose no keys"
            )
        return self

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        ours = self.engine.redis_cache
        for position in range(len(self.models)):
            cache = self._of_model(position).engine.redis_cache
            if cache.is_ours and cache != ours:
                raise ValueError(
                    f"models.{position}.engine.redis_cache.max_bytes: got {cache.max_bytes}, "
                    f"expected that of engine.redis_cache ({ours.max_bytes}), for all models share "
                    "the server that is started"
                )
        return self

    @property
    def each_model(self) -> tuple["Settings", ...]:
        """The settings of each model by itself, in order; those of the whole tree come first."""
        first = self.model_copy(update={"models": ()})
        return (first, *(self._of_model(position) for position in range(len(self.models))))

    def _of_model(self, position: int) -> "Settings":
        more = self.models[position]
        engine = _merged(self.engine, more.engine, f"models.{position}.engine")
        replica = _merged(self.replica, more.replica, f"models.{position}.replica")
        changes = {"engine": engine, "replica": replica, "models": ()}
        return self.model_copy(
            update={"model": more.model, "model_name": more.model_name, **changes}
        )

    @property
    def spans_machines(self) -> bool:
        """Whether replicas may run on other machines than the one that these are read on."""
        return self.ray.node_address is not None or self.ray.address is not None


SectionType = TypeVar("SectionType", bound=Section)


def _merged(section: SectionType, changes: Mapping[str, Any], path: str) -> SectionType:
    """The section with these values in it. Raises ValueError, which names the field."""
    try:
        return type(section).model_validate(_deeply_merged(section.model_dump(), changes))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}.{field}: got {first['input']!r}: {first['msg']}") from error


def _deeply_merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in changes.items():
        below = merged.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[name] = _deeply_merged(below, value)
        else:
            merged[name] = value
    return merged


def load_settings(path: Path | None = None, **overrides: object) -> Settings:
    """Settings from the YAML file at `path`, the environment and `overrides`, the last one winning.

    Raises pydantic.ValidationError, which names the field, ValueError for a file that is no YAML
    mapping, and FileNotFoundError.
    """
    if path is not None:
        _check_file(path)

    class Sourced(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, YamlConfigSettingsSource(settings_cls, path)

    return Settings.model_construct(**dict(Sourced(**overrides)))  # type: ignore[arg-type]


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"settings file {path} does not exist")
    try:
        content: Any = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"settings file {path} is no YAML: {error}") from error
    if not isinstance(content, dict | None):
        raise ValueError(f"settings file {path}: got {content!r:.100}, expected a mapping")
