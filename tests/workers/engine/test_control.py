"""The control channel: who is let in, what is refused, whom one hears of."""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.engine.control import (
    MAX_MESSAGE_BYTES,
    Channel,
    ChannelLost,
    FrameKind,
    Plan,
)
from workers.engine.control_hello import connect_to_leader, new_token
from workers.engine.control_messages import AnyMessage, Challenge, Failed, Hello, Progress
from workers.engine.gang_members import Door, Member

NODE = "127.0.0.1"


class Heard:
    """What a channel's reading thread has been told."""

    def __init__(self, channel: Channel, *, takes_plans: bool = True) -> None:
        self.messages: SimpleQueue[AnyMessage] = SimpleQueue()
        self.plans: SimpleQueue[Plan] = SimpleQueue()
        self.ends: SimpleQueue[ChannelLost] = SimpleQueue()
        on_plan = self.plans.put if takes_plans else None
        channel.start(self.messages.put, on_plan, self.ends.put)


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def pair(opened: ExitStack) -> tuple[Channel, Channel]:
    server = socket.create_server((NODE, 0))
    client = socket.create_connection(server.getsockname())
    ends = Channel(client), Channel(server.accept()[0])
    server.close()
    for end in ends:
        opened.callback(end.close)
    return ends


def _raw(opened: ExitStack) -> tuple[socket.socket, Channel]:
    """A peer that may send anything, and our end."""
    server = socket.create_server((NODE, 0))
    peer = opened.enter_context(socket.create_connection(server.getsockname()))
    channel = Channel(server.accept()[0])
    server.close()
    opened.callback(channel.close)
    return peer, channel


def test_messages_and_plans_arrive_as_they_were_sent(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    heard = Heard(theirs)
    Heard(ours)
    plans = [np.arange(size, dtype=np.int64) for size in (1, 300_000, 7)]
    for number, plan in enumerate(plans):
        ours.send(Progress(done=number, total=3))
        ours.send_plan(plan)
    for number, plan in enumerate(plans):
        assert heard.messages.get() == Progress(done=number, total=3)
        np.testing.assert_array_equal(heard.plans.get(), plan)


def test_senders_on_many_threads_do_not_mix_their_frames(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    heard = Heard(theirs)
    plan = np.zeros(50_000, dtype=np.int64)

    def send() -> None:
        for _ in range(20):
            ours.send(Failed(error="x" * 10_000))
            ours.send_plan(plan)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(80):
        assert heard.messages.get() == Failed(error="x" * 10_000)
        assert len(heard.plans.get()) == len(plan)
    for thread in threads:
        thread.join()


def test_hanging_up_is_noticed_while_the_other_end_may_still_speak(
    pair: tuple[Channel, Channel],
) -> None:
    ours, theirs = pair
    here, there = Heard(ours), Heard(theirs)
    ours.hang_up()
    assert "has ended" in str(there.ends.get())
    theirs.send(Failed(error="my last word"))
    assert here.messages.get() == Failed(error="my last word")


def test_an_end_that_closes_hears_nothing_more(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    here, there = Heard(ours), Heard(theirs)
    ours.close()
    assert there.ends.get()
    assert here.ends.empty()


def test_a_silent_end_is_lost(opened: ExitStack) -> None:
    """One that is there, but sends no heartbeats."""
    _, channel = _raw(opened)
    heard = Heard(channel)
    assert "silent for 3 s" in str(heard.ends.get())


def test_a_plan_is_refused_by_who_takes_none(pair: tuple[Channel, Channel]) -> None:
    ours, theirs = pair
    heard = Heard(theirs, takes_plans=False)
    ours.send_plan(np.zeros(1, dtype=np.int64))
    assert "a plan came" in str(heard.ends.get())


@pytest.mark.parametrize(
    "frame",
    [
        struct.pack("!BI", 7, 0),
        struct.pack("!BI", FrameKind.HEARTBEAT, 1),
        struct.pack("!BI", FrameKind.MESSAGE, MAX_MESSAGE_BYTES + 1),
        struct.pack("!BI", FrameKind.PLAN, 2**32 - 1),
        struct.pack("!BI", FrameKind.PLAN, 7) + b"7 bytes",
        struct.pack("!BI", FrameKind.MESSAGE, 2) + b"{}",
        struct.pack("!BI", FrameKind.MESSAGE, 15) + b'{"kind":"stap"}',
        struct.pack("!BI", FrameKind.MESSAGE, 2) + b"\xff\xff",
    ],
)
def test_what_is_no_frame_ends_the_channel(opened: ExitStack, frame: bytes) -> None:
    """Before memory for it is taken."""
    peer, channel = _raw(opened)
    heard = Heard(channel)
    peer.sendall(frame)
    assert heard.ends.get()


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=1, max_size=100))
def test_whatever_comes_the_reader_only_ends(data: bytes) -> None:
    with ExitStack() as opened:
        peer, channel = _raw(opened)
        heard = Heard(channel)
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)
        assert heard.ends.get()


@pytest.fixture
def door(opened: ExitStack) -> Iterator[tuple[Door, list[Member], str]]:
    """Of a gang of two, with whom it lets in and what they have to know."""
    members: list[Member] = []
    token = new_token()
    door = Door(NODE, token, 2, members.append)
    yield door, members, token
    door.close()
    for member in members:
        member.channel.close()


def _nothing() -> None:
    pass


def test_a_rank_that_knows_the_token_is_let_in(door: tuple[Door, list[Member], str]) -> None:
    entrance, members, token = door
    coming = threading.Thread(
        target=lambda: connect_to_leader(entrance.address, token, 1, NODE).close()
    )
    coming.start()
    entrance.wait(30.0, _nothing)
    coming.join()
    assert [member.hello.rank for member in members] == [1]


def test_strangers_are_turned_away_and_keep_nobody_waiting(
    door: tuple[Door, list[Member], str], opened: ExitStack
) -> None:
    """Who knows no token, says nothing, makes a proof up, or is no such rank."""
    entrance, members, token = door
    host, port = entrance.address.split(":")
    opened.enter_context(socket.create_connection((host, int(port))))
    thief = Channel(opened.enter_context(socket.create_connection((host, int(port)))))
    refused: SimpleQueue[ChannelLost] = SimpleQueue()

    def come() -> None:
        for wrong_token, rank in (("0" * 64, 1), (token, 2)):
            channel = connect_to_leader(entrance.address, wrong_token, rank, NODE)
            channel.start(_ignore, None, refused.put)
        assert isinstance(thief.receive(), Challenge)
        thief.send(Hello(rank=1, pid=1, node=NODE, num_cpus=1, proof="f" * 64))
        thief.start(_ignore, None, refused.put)
        for _ in range(3):
            refused.get()
        connect_to_leader(entrance.address, token, 1, NODE).hang_up()

    coming = threading.Thread(target=come)
    coming.start()
    entrance.wait(30.0, _nothing)
    coming.join()
    assert [member.hello.rank for member in members] == [1]


def test_ranks_that_do_not_come_are_named(opened: ExitStack) -> None:
    door = Door(NODE, new_token(), 4, _ignore)
    opened.callback(door.close)
    with pytest.raises(TimeoutError, match="ranks 1, 2, 3 did not come within 0 s"):
        door.wait(0.0, _nothing)


def _ignore(_: object) -> None:
    pass
