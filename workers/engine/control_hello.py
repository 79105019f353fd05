"""How a rank is let into a gang: it proves to know the gang's token without sending it.

The leader sends a nonce that it uses once; the rank answers with who it is, signed with the token
(HMAC-SHA256, RFC 2104).
"""

import hashlib
import hmac
import json
import os
import secrets
import socket

from workers.engine.control import Channel, ChannelLost
from workers.engine.control_messages import Challenge, Hello
from workers.engine.cpus import usable_cpus

_MAX_HELLO_BYTES = 4096


def new_token() -> str:
    """A gang's secret."""
    return secrets.token_hex(32)


def receive_hello(channel: Channel, token: str) -> Hello:
    """On the leader: challenge whoever has connected.

    Raises ChannelLost if it does not prove in time that it is of this gang.
    """
    challenge = Challenge(nonce=secrets.token_hex(32))
    channel.send(challenge)
    hello = channel.receive(_MAX_HELLO_BYTES)
    if not isinstance(hello, Hello):
        raise ChannelLost(f"said {hello.kind} before hello")
    if not hmac.compare_digest(
        hello.proof.encode(), _proof(token, challenge.nonce, hello).encode()
    ):
        raise ChannelLost(f"what calls itself rank {hello.rank} does not know the gang's token")
    return hello


def connect_to_leader(address: str, token: str, rank: int, node: str) -> Channel:
    """On another rank, which runs on the machine `node`: connect and say hello.

    Raises ChannelLost, and OSError if the leader's host:port cannot be reached.
    """
    host, _, port = address.rpartition(":")
    channel = Channel(socket.create_connection((host, int(port)), timeout=_CONNECT_S))
    challenge = channel.receive(_MAX_HELLO_BYTES)
    if not isinstance(challenge, Challenge):
        raise ChannelLost(f"the leader said {challenge.kind} instead of a challenge")
    hello = Hello(rank=rank, pid=os.getpid(), node=node, num_cpus=usable_cpus(), proof="")
    proof = _proof(token, challenge.nonce, hello)
    channel.send(hello.model_copy(update={"proof": proof}))
    return channel


_CONNECT_S = 10.0


def _proof(token: str, nonce: str, hello: Hello) -> str:
    signed = [nonce, hello.rank, hello.pid, hello.node, hello.num_cpus]
    return hmac.digest(token.encode(), json.dumps(signed).encode(), hashlib.sha256).hex()
