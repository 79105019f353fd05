"""The other commands, beside a cluster of two replicas."""

import json

from trunkline import Client

from tests.e2e.cluster import Cluster


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


def test_generate_says_what_the_sdk_says(cluster: Cluster, client: Client) -> None:
    done = cluster.command("generate", "The list type", "--max-tokens", "12", "--seed", "7")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == client.generate("The list type", max_tokens=12, seed=7).text() + "\n"


def test_chat_says_what_the_sdk_says(cluster: Cluster, client: Client) -> None:
    done = cluster.command("chat", "--max-tokens", "8", "--temperature", "0", stdin="Hello\n")
    answer = client.chat([{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0)
    assert (done.returncode, done.stderr) == (0, "")
    assert answer.text().strip() in done.stdout
