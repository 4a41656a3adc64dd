"""Frames received ahead: in order, whole, bounded, and never beyond the end of a task."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from standby.errors import LinkError
from standby.road.read_ahead import FRAMES, ReadAhead
from standby.wire.link import Link
from standby.wire.messages import Attach, Finish, Mark
from wires import wait_until


@pytest.fixture
def ends() -> Iterator[tuple[Link, Link]]:
    near, far = socket.socketpair()
    with Link(near, "target") as link, Link(far, "source") as other:
        yield link, other


def test_every_payload_stays_until_the_next_frame_is_asked_for(ends: tuple[Link, Link]) -> None:
    link, far = ends
    payloads = [bytes([number]) * (100_000 + number) for number in range(20)]

    def send() -> None:
        for number, payload in enumerate(payloads):
            link.send(Mark(number), payload)
        link.send(Finish())

    sending = threading.Thread(target=send)
    sending.start()
    with contextlib.closing(ReadAhead(far)) as ahead:
        for number, payload in enumerate(payloads):
            message, view = ahead.receive()
            assert message == Mark(number)
            if number < FRAMES:  # let what comes ahead come
                wait_until(lambda: far.received_bytes > 100_000 * (FRAMES - 1))
            assert view == payload
        assert ahead.receive()[0] == Finish()
    sending.join()


def test_no_more_than_some_frames_come_ahead(ends: tuple[Link, Link]) -> None:
    link, far = ends
    for number in range(20):
        link.send(Mark(number))
    one = link.sent_bytes // 20
    with contextlib.closing(ReadAhead(far)) as ahead:
        assert ahead.receive()[0] == Mark(0)
        wait_until(lambda: far.received_bytes >= FRAMES * one)
        assert ahead.receive()[0] == Mark(1)
        assert far.received_bytes <= (FRAMES + 1) * one
        far.shutdown()


def test_what_follows_a_finish_is_left_to_whoever_asks(ends: tuple[Link, Link]) -> None:
    link, far = ends
    link.send(Finish())
    link.send(Attach("the next task"))
    with contextlib.closing(ReadAhead(far)) as ahead:
        assert ahead.receive()[0] == Finish()
    assert far.receive()[0] == Attach("the next task")


def test_after_a_finish_it_goes_on_when_asked(ends: tuple[Link, Link]) -> None:
    link, far = ends
    for message in (Finish(), Mark(1), Finish()):
        link.send(message)
    with contextlib.closing(ReadAhead(far)) as ahead:
        assert [ahead.receive()[0] for _ in range(3)] == [Finish(), Mark(1), Finish()]


def test_the_links_end_comes_after_what_was_sent_before_it(ends: tuple[Link, Link]) -> None:
    link, far = ends
    link.send(Mark(1))
    link.shutdown()
    with contextlib.closing(ReadAhead(far)) as ahead:
        assert ahead.receive()[0] == Mark(1)
        for _ in range(2):
            with pytest.raises(LinkError, match="closed the connection"):
                ahead.receive()


def test_no_thread_stays_behind_one_that_was_given_up(ends: tuple[Link, Link]) -> None:
    link, far = ends
    for number in range(FRAMES * 2):
        link.send(Mark(number))
    before = set(threading.enumerate())
    ahead = ReadAhead(far)
    ahead.receive()
    (reader,) = set(threading.enumerate()) - before
    ahead.close()
    link.shutdown()
    reader.join(20)
    assert not reader.is_alive()
