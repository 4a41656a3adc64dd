"""Frames, messages and links: what is sent arrives, and nothing malformed gets further."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from standby.errors import LinkError, NoSuchPoint, ProtocolError, error_from_wire, error_to_wire
from standby.wire import frames, messages
from standby.wire.link import Link
from standby.wire.messages import Batch, Call, Failed, GetLeaves, Reply
from standby.wire.shared_memory import SharedRing


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    links = Link(ours, "there"), Link(theirs, "here")
    yield links
    for link in links:
        link.close()


def raw_pair():
    ours, theirs = socket.socketpair()
    return ours, Link(theirs, "a stranger")


def test_a_message_arrives_with_its_payload(pair):
    here, there = pair
    here.send(Batch(2, 3, 7, 1), b"abc", memoryview(b"defg"))
    message, payload = there.receive()
    assert message == Batch(2, 3, 7, 1)
    assert bytes(payload) == b"abcdefg"
    assert here.sent_bytes == there.received_bytes > 27


def test_an_empty_array_is_an_empty_payload(pair):
    here, there = pair
    here.send(GetLeaves([1]), np.empty((0, 16), np.uint8), b"", b"x")
    assert bytes(there.receive()[1]) == b"x"


def test_payloads_larger_than_the_socket_buffer_arrive_whole(pair):
    here, there = pair
    data = bytes(range(256)) * 65536
    sender = threading.Thread(target=here.send, args=(GetLeaves([1]), data))
    sender.start()
    _, payload = there.receive()
    sender.join()
    assert bytes(payload) == data


def test_an_error_crosses_the_wire_as_itself(pair):
    here, there = pair
    here.send(Failed(4, error_to_wire(NoSuchPoint("web01", "x", ("a", "b")))))
    message, _ = there.receive()
    assert isinstance(message, Failed)
    error = error_from_wire(message.error)
    assert isinstance(error, NoSuchPoint)
    assert error.known == ("a", "b")


def test_the_end_of_the_stream_is_a_link_error(pair):
    here, there = pair
    here.close()
    with pytest.raises(LinkError, match="closed"):
        there.receive()


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (frames.HEADER.pack(b"HTTP", 1, 0, 5, 0), "begins with"),
        (frames.HEADER.pack(b"STBY", 2, 0, 5, 0), "version 2"),
        (frames.HEADER.pack(b"STBY", 1, 9, 5, 0), "flags"),
        (frames.HEADER.pack(b"STBY", 1, 0, 0, 0), "message length 0"),
        (frames.HEADER.pack(b"STBY", 1, 0, 0xFFFFFFFF, 0), "message length"),
        (frames.HEADER.pack(b"STBY", 1, 0, 5, 1 << 60), "payload length"),
    ],
)
def test_a_bad_header_is_refused_before_memory_is_set_aside(header, said):
    stranger, link = raw_pair()
    stranger.sendall(header)
    with pytest.raises(ProtocolError, match=said):
        link.receive()
    stranger.close()
    link.close()


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_for_a_message_are_a_message_or_a_protocol_error(body):
    try:
        message = messages.decoded(memoryview(body), messages.decoder(), "fuzz")
    except ProtocolError:
        return
    assert isinstance(message, messages.Message)


@given(st.binary(max_size=400))
def test_any_stream_ends_in_a_link_error_or_a_message(data):
    stranger, link = raw_pair()
    stranger.sendall(data)
    stranger.close()
    received = 0
    try:
        while True:
            link.receive()
            received += 1
    except LinkError:
        assert received * frames.HEADER.size <= len(data)
    link.close()


def test_a_field_of_a_wrong_type_is_refused():
    body = messages.encoded(Call(1, "ping", {})).replace(b"\xa4ping", b"\x01\x01\x01\x01\x01")
    with pytest.raises(ProtocolError):
        messages.decoded(memoryview(body), messages.decoder(), "x")


def test_replies_carry_builtin_values(pair):
    here, there = pair
    here.send(Reply(3, {"a": [1, 2.5, "x", None]}))
    assert there.receive()[0] == Reply(3, {"a": [1, 2.5, "x", None]})


def test_two_maps_of_one_ring_see_the_same_bytes():
    handle = SharedRing.create(2, 4096)
    here, there = SharedRing(handle, 2, 4096), SharedRing(handle, 2, 4096)
    here.slot(1)[:3] = b"abc"
    assert bytes(there.slot(1)[:3]) == b"abc"
    with pytest.raises(IndexError):
        here.slot(2)
    SharedRing.close_handle(handle)
