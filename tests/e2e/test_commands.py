"""The other commands, beside a cluster of two replicas."""

import json

import httpx
from trunkline import Client

from tests.e2e.cluster import Cluster


def test_the_block_names_endpoints_that_work(cluster: Cluster) -> None:
    assert "Trunkline serves demo (2 replicas)" in cluster.said
    url = next(word for word in cluster.said.split() if word.startswith("http://"))
    [model] = httpx.get(f"{url}/models").json()["data"]
    assert model["id"] == "demo"


async def test_status_tells_programs_of_every_replica(cluster: Cluster) -> None:
    done = cluster.command("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told = {replica["pid"]: replica for replica in json.loads(done.stdout)}
    records = await cluster.replicas()
    assert {r.pid: (r.replica_id, r.epoch, r.address) for r in records} == {
        pid: (replica["replica"], replica["epoch"], replica["address"])
        for pid, replica in told.items()
    }
    assert all(replica["running_sequences"] == 0 for replica in told.values())
    table = cluster.command("status").stdout
    assert all(str(pid) in table for pid in told)


def test_generate_says_what_the_sdk_says(cluster: Cluster, client: Client) -> None:
    """Of a prompt that is an argument, or comes by standard input."""
    expected = client.generate("The list type", max_tokens=12, seed=7).text() + "\n"
    options = ("--max-tokens", "12", "--seed", "7")
    for prompt, stdin in (("The list type", ""), ("-", "The list type")):
        done = cluster.command("generate", prompt, *options, stdin=stdin)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == expected


def test_chat_says_what_the_sdk_says(cluster: Cluster, client: Client) -> None:
    done = cluster.command("chat", "--max-tokens", "8", "--temperature", "0", stdin="Hello\n")
    answer = client.chat([{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0)
    assert (done.returncode, done.stderr) == (0, "")
    assert answer.text().strip() in done.stdout


def test_chat_answers_every_line_until_the_end_of_input(cluster: Cluster) -> None:
    done = cluster.command("chat", "--max-tokens", "8", stdin="Hello\n\nWhat is a list?\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) >= 2


def test_a_bad_option_is_refused_with_the_field_named(cluster: Cluster) -> None:
    done = cluster.command("generate", "x", "--temperature", "2000")
    assert done.returncode == 1
    assert "options.sampling.temperature" in done.stderr
