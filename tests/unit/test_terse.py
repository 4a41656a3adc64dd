"""Terse frames: every message travels as it is, in the fewest bytes; whatever else comes is an
error with a name."""

from __future__ import annotations

import socket

import msgspec
import numpy as np
import pytest

from standby.errors import ProtocolError
from standby.wire import frames, messages, terse
from standby.wire.link import Limits, Link
from standby.wire.messages import (
    Acknowledged,
    Attach,
    Attached,
    Batch,
    Begin,
    Failed,
    Finish,
    Finished,
    GetLeaves,
    GetNodes,
    Leaves,
    Mark,
    Nodes,
    Over,
    Resend,
    WanAgain,
    WanAnswer,
    WanFrame,
    WanQuestion,
    WanReady,
    WanReceipt,
)

EACH = [
    (Begin(b"h" * 16), 3 + 1 + 2 + 16),
    (Attached(), 3),
    (Over(), 3),
    (Failed(0, {"error": "LinkError", "peer": "x", "problem": "y"}), None),
    (GetLeaves([1, 1 << 40]), None),
    (GetNodes(3, [77]), 7),
    (Leaves(2), 5),
    (Nodes(64), 5),
    (Batch(1, 2, 3, -1, "zstd", b"d" * 16), None),
    (Mark(1 << 40), 13),
    (Acknowledged(0), 5),
    (Finish(), 3),
    (Resend([(0, 4096), (1 << 41, 8192)]), None),
    (Finished(0, 0), 6),
    (WanReady(True, 16, 27, "a session"), None),
    (WanReady(True, 16, 27, None), 8),
    (WanQuestion(), 3),
    (WanAnswer(), 3),
    (WanFrame(9), 5),
    (WanReceipt(), 3),
    (WanAgain(), 3),
]
PAYLOADS = (0, 1, 127, 128, 16383, 16384, (1 << 21) - 1, 1 << 21)


def linked() -> tuple[Link, Link]:
    ours, theirs = socket.socketpair()
    made = Link(ours, "one"), Link(theirs, "other")
    for link in made:
        link.be_terse()
    return made


@pytest.mark.parametrize(("message", "size"), EACH, ids=lambda value: type(value).__name__)
def test_every_message_arrives_as_it_was(message, size):
    one, other = linked()
    with one, other:
        one.send(message)
        one.send(message, b"abc")
        for payload in (b"", b"abc"):
            came, content = other.receive()
            assert (came, bytes(content)) == (message, payload)
        assert other.received_bytes == one.sent_bytes
        if size is not None:
            assert one.sent_bytes == 2 * size + 3


def test_every_code_is_tested_and_stays_what_it_is():
    assert {type(message) for message, _ in EACH} == set(terse.CODES.values())
    assert [f"{code:x} {kind.__name__}" for code, kind in terse.CODES.items()] == [
        "1 Begin", "2 Attached", "3 Over", "4 Failed",
        "10 GetLeaves", "11 GetNodes", "12 Leaves", "13 Nodes",
        "20 Batch", "21 Mark", "22 Acknowledged", "23 Finish", "24 Resend", "25 Finished",
        "30 WanReady", "31 WanQuestion", "32 WanAnswer", "33 WanFrame", "34 WanReceipt",
        "35 WanAgain",
    ]  # fmt: skip


@pytest.mark.parametrize("length", PAYLOADS)
def test_payloads_of_any_length_arrive(length):
    reader, limits = terse.Reader(), Limits()
    header = memoryview(terse.packed(WanAgain(), length))
    for cut in range(terse.HEADER_MIN, len(header)):
        assert reader.parsed(header[:cut], "x", limits) is None
    assert reader.parsed(header, "x", limits) == (WanAgain, 0, length)


def test_a_large_frame_goes_through_a_link():
    one, other = linked()
    data = np.random.default_rng(1).bytes(100_000)
    with one, other:
        one.send(Nodes(5), data)
        message, payload = other.receive()
        assert (message, bytes(payload)) == (Nodes(5), data)
        assert one.sent_bytes == other.received_bytes == 100_000 + 2 + 3 + 2


def test_what_has_no_business_there_is_not_sent():
    one, other = linked()
    with one, other:
        with pytest.raises(ProtocolError, match="Attach has no business"):
            one.send(Attach("task"))
        assert one.sent_bytes == 0


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x00\x00\x00", "unknown kind 0x0"),
        (b"STBY", "unknown kind 0x53"),
        (b"\x23\x01\x00", "Finish of 1 bytes"),
        (b"\x21\x00\x00", "Mark of 0 bytes"),
        (b"\x21\x82\x00\x00", "longer than it must be"),
        (b"\x23\x00\x80\x00", "longer than it must be"),
        (b"\x23\x00\x80\x80\x80\x80\x01", "more than 28 bits"),
        (b"\x04\x80\x80\x80\x80", "more than 28 bits"),
        (b"\x23\x00\xff\xff\xff\x7f", "payload length 268435455 exceeds"),
        (b"\x04\xff\xff\xff\x7f\x00", "Failed of 268435455 bytes"),
        (b"\x21\x02\x00\x91\xc0", "malformed Mark"),
        (b"\x21\x03\x00\x92\x01\x02", "malformed Mark"),
        (b"\x21\x01\x00\xc1", "malformed Mark"),
        (b"\x01\x05\x00\x91\xa3abc", "malformed Begin"),
        (b"\x04\x06\x00\x92\x00\x81\xa1\xff\x00", "malformed Failed"),
    ],
    ids=str,
)
def test_what_is_no_frame_is_refused(data, problem):
    ours, theirs = socket.socketpair()
    with Link(theirs, "other") as link, ours:
        link.be_terse()
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(ProtocolError, match=problem):
            link.receive()


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_an_error_with_a_name_or_a_message(seed):
    chance = np.random.default_rng(seed)
    reader = terse.Reader()
    kinds = list(terse.CODES)
    for _ in range(200):
        head = bytes([int(chance.choice(kinds))]) + chance.bytes(8)
        try:
            found = reader.parsed(memoryview(head), "x", Limits())
            assert found is not None
            body = msgspec.msgpack.encode(
                chance.integers(0, 9, int(chance.integers(0, 4))).tolist()
            )
            message = reader.decoded(found.kind, memoryview(body), "x")
        except ProtocolError:
            continue
        assert isinstance(message, messages.Message)


def test_our_own_limits_hold_for_us_too():
    with pytest.raises(ProtocolError, match="exceeds the limits"):
        terse.packed(WanFrame(), frames.PAYLOAD_MAX + 1)
