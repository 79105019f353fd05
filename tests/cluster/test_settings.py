"""What stands in the file counts, and what cannot be understood is told by name."""

from pathlib import Path

import pytest

from cluster.node_host import node_host
from cluster.settings import load_settings


def written(directory: Path, text: str) -> Path:
    path = directory / "settings.yaml"
    path.write_text(text)
    return path


def test_overrides_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "router: {grpc_port: 1, http_port: 1, host: a}\nmodel: file")
    monkeypatch.setenv("TRUNKLINE__ROUTER__GRPC_PORT", "2")
    monkeypatch.setenv("TRUNKLINE__MODEL", "environment")
    settings = load_settings(path, model="override")
    assert settings.model == "override"
    router = settings.router
    assert (router.grpc_port, router.http_port, router.host) == (2, 1, "a")


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, "")) == load_settings()


@pytest.mark.parametrize("text", ["a: [", "\x00", "- a", "word", "3"])
def test_a_file_that_is_no_mapping_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"settings\.yaml"):
        load_settings(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "field"), [("router: {grpc_prot: 1}", "grpc_prot"), ("replica: {count: x}", "count")]
)
def test_a_wrong_field_is_named(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(ValueError, match=field):
        load_settings(written(tmp_path, text))


def test_a_missing_file_is_no_default(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_settings(tmp_path / "missing.yaml")


@pytest.mark.parametrize("address", ["0.0.0.0", "::1", "here", "10.0.0"])
def test_a_node_address_is_one_ipv4_address(address: str) -> None:
    with pytest.raises(ValueError, match=r"ray\.node_address"):
        load_settings(ray={"node_address": address})


def test_whether_replicas_may_be_elsewhere_and_where_they_listen() -> None:
    alone = load_settings()
    head = load_settings(ray={"node_address": "10.0.0.1"}, replica={"host": "10.0.0.2"})
    assert not alone.spans_machines
    assert node_host(alone) == "127.0.0.1"
    assert head.spans_machines
    assert load_settings(ray={"address": "10.0.0.1:6380"}).spans_machines
    assert node_host(head) == "10.0.0.2"


def test_each_model_has_the_settings_of_all_but_for_its_own(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
        model: a
        engine: {block_size: 32, parallel: {pipeline: 2}}
        replica: {count: 3}
        models:
          - {model: b, model_name: other, engine: {parallel: {tensor: 2}}, replica: {count: 1}}
          - {model: c}
        """,
    )
    first, second, third = load_settings(path).each_model
    assert (first.model, second.model, third.model) == ("a", "b", "c")
    assert (first.model_name, second.model_name, third.model_name) == (None, "other", None)
    assert (first.replica.count, second.replica.count, third.replica.count) == (3, 1, 3)
    parallel = second.engine.parallel
    assert (second.engine.block_size, parallel.pipeline, parallel.tensor) == (32, 2, 2)
    assert third.engine == first.engine
    assert all(not one.models for one in (first, second, third))


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"engine": {"blok_size": 1}}, r"models\.0\.engine\.blok_size"),
        ({"engine": {"parallel": {"tensor": 0}}}, r"models\.0\.engine\.parallel\.tensor"),
        ({"replica": {"count": -1}}, r"models\.0\.replica\.count"),
    ],
)
def test_what_is_wrong_with_one_of_several_models_is_named(
    more: dict[str, object], field: str
) -> None:
    with pytest.raises(ValueError, match=field):
        load_settings(models=[{"model": "b", **more}])


def test_a_size_alone_makes_a_cache_of_prefixes() -> None:
    assert not load_settings().engine.redis_cache.is_used
    engine = load_settings(engine={"redis_cache": {"max_bytes": 1 << 30}}).engine
    assert engine.redis_cache.is_ours
    assert engine.host_tier_bytes > 0 == load_settings().engine.host_tier_bytes
    given = load_settings(engine={"redis_cache": {"url": "redis://x"}, "host_cache_bytes": 5})
    assert not given.engine.redis_cache.is_ours
    assert given.engine.host_tier_bytes == 5


def test_models_share_the_server_that_is_started_for_prefixes() -> None:
    cache = {"max_bytes": 1 << 30}
    more = {"model": "b", "engine": {"redis_cache": {"max_bytes": 1 << 20}}}
    with pytest.raises(ValueError, match=r"models\.0\.engine\.redis_cache\.max_bytes: got 1048576"):
        load_settings(models=[more])
    with pytest.raises(ValueError, match="share"):
        load_settings(engine={"redis_cache": cache}, models=[more])
    more["engine"] = {"redis_cache": {"max_bytes": None}}
    first, second, third = load_settings(
        engine={"redis_cache": cache}, models=[more, {"model": "c"}]
    ).each_model
    assert not second.engine.redis_cache.is_used
    assert third.engine.redis_cache == first.engine.redis_cache
