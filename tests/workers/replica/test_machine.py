"""A replica's share of its machine, and the model that has to be on it."""

from pathlib import Path

import pytest

from cluster.settings import (
    EngineSettings,
    ParallelSettings,
    RaySettings,
    ReplicaSettings,
    Settings,
)
from workers.engine.cpus import usable_cpus
from workers.replica.machine import check_model, with_shares, with_shares_here

CLUSTER = RaySettings(node_address="10.0.0.1")


def test_on_a_lone_machine_replicas_divide_it_before_they_start() -> None:
    settings = with_shares(Settings(replica=ReplicaSettings(count=usable_cpus())))
    assert settings.engine.num_threads == 1
    assert settings.engine.cpu_memory_share == 0.5 / (usable_cpus() + 1)
    assert with_shares_here(settings) == settings


def test_in_a_cluster_each_takes_of_its_own_machine_what_it_reserves() -> None:
    settings = Settings(ray=CLUSTER, replica=ReplicaSettings(count=100, num_cpus=usable_cpus()))
    assert with_shares(settings) == settings
    whole = with_shares_here(settings).engine
    assert (whole.num_threads, whole.cpu_memory_share) == (usable_cpus(), 0.5)
    more = Settings(ray=CLUSTER, replica=ReplicaSettings(num_cpus=usable_cpus() + 1))
    assert with_shares_here(more).engine == whole
    tiny = with_shares_here(Settings(ray=CLUSTER, replica=ReplicaSettings(num_cpus=0.5))).engine
    assert (tiny.num_threads, tiny.cpu_memory_share) == (1, 0.25 / usable_cpus())


@pytest.mark.parametrize("ray", [RaySettings(), CLUSTER])
def test_what_is_said_stays(ray: RaySettings) -> None:
    settings = Settings(ray=ray, engine=EngineSettings(num_threads=7, cpu_memory_share=0.125))
    assert with_shares_here(with_shares(settings)) == settings


def test_a_model_that_is_missing_is_told_with_the_machine(tmp_path: Path) -> None:
    settings = Settings(ray=CLUSTER, model=str(tmp_path), replica=ReplicaSettings(host="10.0.0.2"))
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} has no config.json on 10\.0\.0\.2"):
        check_model(settings)
    (tmp_path / "config.json").touch()
    check_model(settings)


def test_models_divide_a_lone_machine_by_their_ranks() -> None:
    one = Settings(replica=ReplicaSettings(count=1))
    other = Settings(
        replica=ReplicaSettings(count=2), engine=EngineSettings(parallel=ParallelSettings(tensor=2))
    )
    assert with_shares(one, [other]).engine.cpu_memory_share == 0.5 / (1 + 4 + 1)
    assert with_shares(other, [one]).engine.cpu_memory_share == 0.5 / (4 + 1 + 2)
