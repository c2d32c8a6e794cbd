"""Messages between a parent and its worker arrive whole, in order, or not at all."""

import os
import pickle
import select
import threading

import pytest

from parcompute.workers.channel import Channel


@pytest.fixture
def ends():
    ours, theirs = Channel.pair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("n_bytes", [0, 1, 2**14 - 100, 2**14 + 1, 5_000_000])
def test_messages_of_any_size_arrive_in_order(ends, n_bytes):
    ours, theirs = ends
    messages = [(number, bytes([number]) * n_bytes) for number in range(3)]
    sender = threading.Thread(target=lambda: [ours.send(message) for message in messages])  # the socket is soon full
    sender.start()
    assert [theirs.recv() for _ in messages] == messages
    sender.join()


def test_an_end_can_be_waited_for(ends):
    ours, theirs = ends
    assert not theirs.poll()
    assert not theirs.poll(0.001)
    ours.send("news")
    assert theirs.poll()
    assert select.select([theirs], [], [], 0)[0] == [theirs]
    assert theirs.recv() == "news"
    assert not theirs.poll()


@pytest.mark.parametrize("n_bytes", [0, 3, 8, 20])
def test_an_end_that_goes_in_the_middle_of_a_message_is_noticed(ends, n_bytes):
    ours, theirs = ends
    pickled = pickle.dumps("a message of more than twenty bytes")
    os.write(ours.fileno(), (len(pickled).to_bytes(8, "little") + pickled)[:n_bytes])
    ours.close()
    assert theirs.poll()
    with pytest.raises(EOFError):
        theirs.recv()


def test_what_is_sent_to_nobody_is_an_error(ends):
    ours, theirs = ends
    theirs.close()
    with pytest.raises(ConnectionError):
        ours.send("anybody?")


def test_a_closed_end_has_no_descriptor_and_may_be_closed_again(ends):
    ours, _ = ends
    ours.close()
    ours.close()
    assert ours.closed
    with pytest.raises(OSError, match="closed"):
        ours.poll()
    with pytest.raises(OSError, match="closed"):
        ours.send("anything")


def test_an_end_that_nobody_has_any_more_is_closed():
    ours, theirs = Channel.pair()
    del ours
    with theirs, pytest.raises(EOFError):
        theirs.recv()
