"""Has a head claim a version: `python -m tests.multinode.card_version HEAD VERSION`, on a host."""

import os
import sys

from cluster.cluster_card import read_card, write_card
from cluster.ray_environment import prepare_shared


def main(head: str, version: str) -> None:
    prepare_shared(os.environ["TRUNKLINE_JOIN_TOKEN"])
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    client = GcsClient(address=head)
    card = read_card(client)
    assert card is not None
    versions = card.versions.model_copy(update={"trunkline": version})
    write_card(client, card.model_copy(update={"versions": versions}))


main(*sys.argv[1:])
