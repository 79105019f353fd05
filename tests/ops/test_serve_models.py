"""One `trunkline serve` with two models, which commands then name, chain and take away."""

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from trunkline import Client

from tests.ops.cluster_fixture import serving, short_directory, trunkline

PATIENCE_S = 60.0
ENGINE = {"kv_cache_bytes": 64 * 1024**2, "num_threads": 1}
MORE = {"model": "demo-small", "model_name": "org/other", "engine": {"max_num_seqs": 2}}


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def urls(directory: Path) -> Iterator[tuple[str, str]]:
    """Where the cluster is found by gRPC and HTTP."""
    config = directory / "settings.yaml"
    config.write_text(json.dumps({"engine": ENGINE, "models": [MORE]}))
    arguments = ("demo-small", "--config", str(config))
    with serving(directory, *arguments) as (process, block):
        assert "Trunkline serves demo-small (1 replica), org/other (1 replica)" in block
        words = block.split()
        yield (
            words[words.index("gRPC") + 1],
            next(word for word in words if word.startswith("http://")),
        )
        # A rollout reads the settings again: the second model goes.
        config.write_text(json.dumps({"engine": ENGINE}))
        done = trunkline("rollout", run_directory=directory)
        assert (done.returncode, done.stderr) == (0, "")
        status = trunkline("status", "--json", run_directory=directory)
        assert [replica["model"] for replica in json.loads(status.stdout)] == ["demo-small"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


def test_both_models_answer_by_their_names(urls: tuple[str, str]) -> None:
    grpc, http = urls
    with Client(grpc) as client:
        answers = {}
        for model in ("demo-small", "org/other"):
            stream = client.generate("import", model=model, temperature=0.0, max_tokens=8)
            answers[model] = stream.text()
            assert stream.model == model
    assert answers["demo-small"] == answers["org/other"]
    listed = httpx.get(f"{http}/models").json()["data"]
    assert [model["id"] for model in listed] == ["demo-small", "org/other"]


def test_commands_give_names_that_routers_know_soon(urls: tuple[str, str], directory: Path) -> None:
    grpc, _ = urls
    done = trunkline("models", "alias", "best", "org/other", run_directory=directory)
    assert (done.returncode, done.stderr) == (0, "")
    with Client(grpc) as client:
        stream = client.generate("import", model="best", max_tokens=4)
        stream.text()
        assert stream.model == "org/other"
        done = trunkline("models", "remove", "best", run_directory=directory)
        assert (done.returncode, done.stderr) == (0, "")
        deadline = time.monotonic() + PATIENCE_S
        while "best" in {model.name for model in client.models()}:
            assert time.monotonic() < deadline
