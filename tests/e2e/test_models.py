"""One `trunkline serve` with two models, which commands then name, chain and take away."""

import json
from collections.abc import Iterator

import httpx
import pytest
from trunkline import Client

from tests.e2e.cluster import Cluster, serving
from tests.e2e.patience import wait_until
from tests.e2e.settings import ENGINE

MORE = {"model": "demo-small", "model_name": "org/other", "engine": {"max_num_seqs": 2}}


@pytest.fixture(scope="module")
def both() -> Iterator[Cluster]:
    with serving("demo-small", {"engine": ENGINE, "models": [MORE]}) as running:
        yield running


def test_both_models_answer_by_their_names(both: Cluster) -> None:
    assert "Trunkline serves demo-small (1 replica), org/other (1 replica)" in both.said
    with Client(both.grpc) as client:
        answers = {}
        for model in ("demo-small", "org/other"):
            stream = client.generate("import", model=model, temperature=0.0, max_tokens=8)
            answers[model] = stream.text()
            assert stream.model == model
    assert answers["demo-small"] == answers["org/other"]
    listed = httpx.get(f"{both.http}/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["demo-small", "org/other"]


def test_commands_give_names_that_routers_know_soon(both: Cluster) -> None:
    done = both.command("models", "alias", "best", "org/other")
    assert (done.returncode, done.stderr) == (0, "")
    with Client(both.grpc) as client:
        stream = client.generate("import", model="best", max_tokens=4)
        stream.text()
        assert stream.model == "org/other"
        done = both.command("models", "remove", "best")
        assert (done.returncode, done.stderr) == (0, "")
        wait_until(lambda: "best" not in {m.name for m in client.models()}, "the name is gone")


def test_a_rollout_takes_a_model_away(both: Cluster) -> None:
    """It reads the settings again."""
    with both.changed_settings({"models": []}):
        done = both.command("rollout")
    assert (done.returncode, done.stderr) == (0, "")
    status = both.command("status", "--json")
    assert [replica["model"] for replica in json.loads(status.stdout)] == ["demo-small"]
