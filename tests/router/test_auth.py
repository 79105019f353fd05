"""Who a request comes from: known keys are taken, also while Redis is away; all others are not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterator

import grpc
import httpx
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from trunkline import AsyncClient, UnauthenticatedError
from trunkline.v1 import inference_pb2 as pb

from cluster.errors import Reason, RequestError
from cluster.redis_client import connect
from cluster.registry import Registry
from cluster.tenants import ANONYMOUS, Holder, Tenant, TenantLimits, TenantStore
from router.auth import Authenticator
from router.call import Call
from tests.redis_server import RedisServer
from tests.router.fake_replica import FakeReplica
from tests.router.harness import Client, detail_of, eventually, running_router
from tests.router.test_gate import Clock


class Directory:
    """A store that counts how often it is asked, and can go away."""

    def __init__(self, store: TenantStore) -> None:
        self.store = store
        self.num_reads = 0
        self.is_away = False

    async def find(self, key_id: str) -> Holder | None:
        self.num_reads += 1
        if self.is_away:
            raise RedisConnectionError("away")
        return await self.store.find(key_id)


@pytest.fixture
def store(redis: Redis, namespace: str) -> TenantStore:
    return TenantStore(redis, namespace)


@pytest.fixture
def directory(store: TenantStore) -> Directory:
    return Directory(store)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def auth(directory: Directory, clock: Clock) -> Authenticator:
    return Authenticator(directory, require_api_key=True, max_kept=3, clock=clock)


async def new_key(store: TenantStore, name: str = "a") -> str:
    tenant = Tenant(name=name)
    await store.put(tenant)
    return str(await store.add_key(tenant))


def bearer(key: str) -> Call:
    return Call(authorization=f"Bearer {key}")


async def refusal(auth: Authenticator, call: Call) -> Reason:
    with pytest.raises(RequestError) as caught:
        await auth.tenant(call)
    return caught.value.reason


async def test_what_is_no_known_key_is_refused(auth: Authenticator, store: TenantStore) -> None:
    key = await new_key(store)
    wrong = key[:-1] + ("0" if key[-1] != "0" else "1")
    basic = Call(authorization=f"Basic {key}")
    for call in (Call(), bearer(""), bearer("none"), bearer(wrong), basic, bearer(key + "0")):
        assert await refusal(auth, call) is Reason.UNAUTHENTICATED
    assert (await auth.tenant(bearer(key))).name == "a"
    assert await refusal(auth, bearer(wrong)) is Reason.UNAUTHENTICATED


async def test_a_key_is_read_once_in_a_while_and_its_loss_is_noticed(
    auth: Authenticator, directory: Directory, store: TenantStore, clock: Clock
) -> None:
    key = await new_key(store)
    await asyncio.gather(*(auth.tenant(bearer(key)) for _ in range(20)))
    assert directory.num_reads == 1
    await store.remove("a")
    clock.now += 6
    assert await refusal(auth, bearer(key)) is Reason.UNAUTHENTICATED


async def test_while_redis_is_away_known_keys_work_and_others_do_not(
    auth: Authenticator, directory: Directory, store: TenantStore, clock: Clock
) -> None:
    known, unknown = await new_key(store), await new_key(store, "b")
    await auth.tenant(bearer(known))
    directory.is_away = True
    clock.now += 3600
    reads = directory.num_reads
    for _ in range(5):
        assert (await auth.tenant(bearer(known))).name == "a"
        assert await refusal(auth, bearer(unknown)) is Reason.AUTH_UNAVAILABLE
    assert directory.num_reads == reads + 1, "it is left in peace for a moment"
    directory.is_away = False
    clock.now += 2
    assert (await auth.tenant(bearer(unknown))).name == "b"


async def test_a_directory_that_does_not_answer_is_away(store: TenantStore, clock: Clock) -> None:
    class Hanging(Directory):
        async def find(self, key_id: str) -> Holder | None:
            if self.is_away:
                await asyncio.Event().wait()
            return await super().find(key_id)

    directory = Hanging(store)
    auth = Authenticator(directory, require_api_key=True, clock=clock)
    known, unknown = await new_key(store), await new_key(store, "b")
    await auth.tenant(bearer(known))
    directory.is_away = True
    clock.now += 60
    assert (await auth.tenant(bearer(known))).name == "a"
    assert await refusal(auth, bearer(unknown)) is Reason.AUTH_UNAVAILABLE


async def test_so_many_keys_are_remembered_and_not_more(
    auth: Authenticator, directory: Directory, store: TenantStore
) -> None:
    keys = [await new_key(store, f"t{number}") for number in range(5)]
    for key in keys:
        await auth.tenant(bearer(key))
    directory.is_away = True
    for key in keys[-3:]:
        await auth.tenant(bearer(key))
    assert await refusal(auth, bearer(keys[0])) is Reason.AUTH_UNAVAILABLE


async def test_a_caller_that_leaves_does_not_take_the_answer_from_the_others(
    auth: Authenticator, store: TenantStore
) -> None:
    key = await new_key(store)
    callers = [asyncio.create_task(auth.tenant(bearer(key))) for _ in range(3)]
    await asyncio.sleep(0)
    callers[0].cancel()
    assert [tenant.name for tenant in await asyncio.gather(*callers[1:])] == ["a", "a"]


async def test_where_no_keys_are_asked_for_everybody_is_anonymous(directory: Directory) -> None:
    auth = Authenticator(directory, require_api_key=False)
    assert await auth.tenant(bearer("whatever")) is ANONYMOUS
    await auth.require_admin(Call())
    assert directory.num_reads == 0


async def test_operators_methods_need_the_right_to_them(
    auth: Authenticator, store: TenantStore
) -> None:
    user = await new_key(store)
    admin = Tenant(name="b", is_admin=True)
    await store.add(admin)
    await auth.require_admin(bearer(str(await store.add_key(admin))))
    with pytest.raises(RequestError) as caught:
        await auth.require_admin(bearer(user))
    assert caught.value.reason is Reason.PERMISSION_DENIED


@pytest.fixture
async def guarded(registry: Registry, replica: FakeReplica) -> AsyncIterator[Client]:
    """A router that asks for keys, once it has found its replica."""
    async with running_router(registry, require_api_key=True) as client:
        await eventually(lambda: is_ready(client))
        yield client


async def is_ready(client: Client) -> bool:
    """By a door that needs no key."""
    async with httpx.AsyncClient() as http:
        url = f"http://{client.addresses['http']}/readyz"
        ready = (await http.get(url)).status_code == 200
    return ready and client.metric("trunkline:replicas_ready", model="tiny") == 1.0


async def test_all_of_inference_asks_for_a_key(guarded: Client) -> None:
    calls: list[Awaitable[object]] = [
        guarded.stub.Tokenize(pb.TokenizeRequest(text="x")),
        guarded.stub.Detokenize(pb.DetokenizeRequest(token_ids=[1])),
        guarded.stub.ListModels(pb.ListModelsRequest()),
        anext(aiter(guarded.stub.Generate(pb.GenerateRequest(prompt="x")))),
        anext(aiter(guarded.stub.Chat(pb.ChatRequest()))),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert detail_of(caught.value).reason == "UNAUTHENTICATED"
    refused = guarded.metric(
        "trunkline:requests_refused_total", tenant="", reason="UNAUTHENTICATED"
    )
    assert refused == 4, "ListModels is no request for a model"


async def test_over_http_health_and_metrics_are_open_and_the_rest_is_not(
    guarded: Client, store: TenantStore
) -> None:
    key = await new_key(store)
    body = {"model": "tiny", "prompt": "x", "max_tokens": 2}
    async with httpx.AsyncClient(base_url=f"http://{guarded.addresses['http']}") as http:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await http.get(path)).status_code == 200
        for answer in (await http.get("/v1/models"), await http.post("/v1/completions", json=body)):
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
        http.headers["authorization"] = f"Bearer {key}"
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == "tiny"
        assert (await http.post("/v1/completions", json=body)).status_code == 200


async def test_without_a_key_no_body_is_read(guarded: Client) -> None:
    host, _, port = guarded.addresses["http"].rpartition(":")
    for path in ("chat/completions", "completions"):
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
        writer.write(head.encode())
        assert (await reader.readline()).startswith(b"HTTP/1.1 401"), "before the body came"
        writer.close()
    counted = {"tenant": "", "reason": "UNAUTHENTICATED"}
    assert guarded.metric("trunkline:requests_refused_total", **counted) == 2


async def test_the_sdk_brings_its_key_and_replicas_the_tenants_salt(
    guarded: Client, store: TenantStore, replica: FakeReplica
) -> None:
    """What a client says about itself beside its key changes nothing."""
    key = await new_key(store)
    tenant = await store.get("a")
    assert tenant is not None
    async with AsyncClient(guarded.addresses["grpc"], api_key=key) as client:
        assert await client.generate("x", max_tokens=2).text()
    async with AsyncClient(guarded.addresses["grpc"], api_key="tk-wrong") as client:
        with pytest.raises(UnauthenticatedError):
            await client.generate("x").text()
    pretended: list[tuple[str, str | bytes]] = [
        ("authorization", f"Bearer {key}"),
        ("tenant", "b"),
        ("cache-salt-bin", b"b"),
    ]
    call = guarded.stub.Generate(pb.GenerateRequest(prompt="x"), metadata=pretended)
    assert [message async for message in call]
    assert [submit.cache_salt for submit in replica.submits] == [tenant.cache_salt] * 2
    assert tenant.cache_salt


async def test_a_priority_above_the_tenants_is_denied(guarded: Client, store: TenantStore) -> None:
    tenant = Tenant(name="a", limits=TenantLimits(max_priority=5))
    await store.add(tenant)
    metadata = [("authorization", f"Bearer {await store.add_key(tenant)}")]
    for priority in (-100, 0, 5):
        options = pb.RequestOptions(priority=priority)
        request = pb.GenerateRequest(prompt="x", options=options)
        assert [_ async for _ in guarded.stub.Generate(request, metadata=metadata)]
    request.options.priority = 6
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await anext(aiter(guarded.stub.Generate(request, metadata=metadata)))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert detail_of(caught.value).field == "options.priority"


@pytest.fixture
def own_redis() -> Iterator[RedisServer]:
    """A server that the test may stop."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


async def test_a_real_redis_that_stops_leaves_known_keys_known(
    own_redis: RedisServer, clock: Clock
) -> None:
    async with connect(own_redis.url) as redis:
        store = TenantStore(redis, "test")
        known, unknown = await new_key(store), await new_key(store, "b")
        auth = Authenticator(store, require_api_key=True, clock=clock)
        await auth.tenant(bearer(known))
        own_redis.stop()
        clock.now += 60
        assert (await auth.tenant(bearer(known))).name == "a"
        assert await refusal(auth, bearer(unknown)) is Reason.AUTH_UNAVAILABLE
