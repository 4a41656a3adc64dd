"""Links that stand: one turn behind the other, each over when both sides said so; handles that are
good for one ticket, one link and one turn."""

from __future__ import annotations

import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest

from standby.errors import CertificateRefused, LinkError, ProtocolError
from standby.wire.identity import Peer
from standby.wire.link import Link
from standby.wire.messages import Attached, Begin, Finish, Finished, Stand, Stands
from standby.wire.standing import Standing, Turn, standing, stood

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Pair:
    """Both ends of one that stands, and what became of their turns."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.bases = Link(ours, "far"), Link(theirs, "near")
        waiting: list[Standing] = []

        def wait() -> None:
            message, _ = self.bases[1].receive()
            assert isinstance(message, Stand)
            waiting.append(standing(self.bases[1], message, "far", "near"))

        thread = threading.Thread(target=wait)
        thread.start()
        self.near = stood(self.bases[0], "near", "far")
        thread.join()
        (self.far,) = waiting
        self.ended: list[bool] = []

    def turns(self) -> tuple[Turn, Turn]:
        near = self.near.next_turn(self.ended.append)
        near.send(Begin(b"handle"))
        assert self.bases[1].receive()[0] == Begin(b"handle")
        far = self.far.next_turn(self.ended.append)
        far.send(Attached())
        assert near.receive()[0] == Attached()
        return near, far

    def end(self, near: Turn, far: Turn) -> None:
        for turn in (near, far):
            turn.say_over()
        for turn in (near, far):
            with pytest.raises(LinkError, match="turn on the link is over"):
                turn.receive()
            turn.close()

    def close(self) -> None:
        for link in self.bases:
            link.close()


@pytest.fixture
def pair():
    made = Pair()
    yield made
    made.close()


def test_one_turn_comes_behind_the_other(pair):
    for number in (1, 2, 3):
        near, far = pair.turns()
        near.send(Finish())
        assert isinstance(far.receive()[0], Finish)
        far.send(Finished(number, 0), b"x" * 1000)
        message, payload = near.receive()
        assert (message, bytes(payload)) == (Finished(number, 0), b"x" * 1000)
        pair.end(near, far)
        assert pair.near.count == pair.far.count == number
    assert pair.ended == [True] * 6
    assert pair.near.is_usable(NOW)


def test_each_turn_counts_its_own_bytes(pair):
    made = pair.bases[0].sent_bytes
    near, far = pair.turns()
    pair.end(near, far)
    assert near.sent_bytes == made + len(b"handle") + 6 + 3  # the first one's, with the link's own
    for _ in range(2):
        near, far = pair.turns()
        pair.end(near, far)
        assert near.sent_bytes == len(b"handle") + 6 + 3
        assert near.received_bytes == far.sent_bytes == 6
    assert pair.bases[0].sent_bytes == made + 3 * 15


def test_an_old_turn_reaches_nothing_of_the_next(pair):
    old = pair.turns()
    pair.end(*old)
    near, far = pair.turns()
    for turn in old:
        turn.shutdown()
        turn.end(LinkError("x", "y"))
        turn.close()
        with pytest.raises(LinkError, match="over"):
            turn.send(Finish())
        with pytest.raises(LinkError, match="over"):
            turn.receive()
    near.send(Finish())
    assert isinstance(far.receive()[0], Finish)
    pair.end(near, far)
    assert pair.ended == [True] * 4


def test_nothing_is_said_behind_the_last_word(pair):
    near, far = pair.turns()
    near.say_over()
    with pytest.raises(LinkError, match="over"):
        near.send(Finish())
    far.send(Finished(1, 1))  # the other direction goes on
    assert near.receive()[0] == Finished(1, 1)


@pytest.mark.parametrize("said", [(), (0,), (1,)], ids=["neither", "one", "the other"])
def test_a_turn_that_both_did_not_end_ends_the_link(pair, said):
    turns = pair.turns()
    for side in said:
        turns[side].say_over()
    turns[0].close()
    assert pair.ended == [False]
    for _ in range(2):  # its last word, where there was one, and the end
        with pytest.raises(LinkError):
            turns[1].receive()
    turns[1].close()
    assert pair.ended == [False, False]
    assert not pair.near.is_usable(NOW)
    for base in pair.bases:
        with pytest.raises(LinkError):
            base.receive()


def test_a_thread_that_waits_is_woken_by_the_end(pair):
    near, _ = pair.turns()
    failed: list[LinkError] = []

    def wait() -> None:
        try:
            near.receive()
        except LinkError as exc:
            failed.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    near.close()
    thread.join(10)
    assert len(failed) == 1


def test_a_peer_that_is_revoked_ends_its_turn_with_that_reason(pair):
    near, far = pair.turns()
    pair.bases[0].end(CertificateRefused("far", "7 is revoked"))
    for work in (near.receive, lambda: near.send(Finish())):
        with pytest.raises(CertificateRefused, match="revoked"):
            work()
    near.close()
    assert pair.ended == [False]
    with pytest.raises(LinkError):
        far.receive()


def test_a_peer_that_is_revoked_gets_no_other_turn(pair):
    pair.end(*pair.turns())
    assert pair.near.is_usable(NOW)
    pair.bases[0].end(CertificateRefused("far", "7 is revoked"))
    assert not pair.near.is_usable(NOW)


def test_a_link_does_not_outlive_its_peers_certificate(pair):
    pair.bases[0].remote = Peer("far", ("wan",), "site", "7", "wan", NOW)
    assert pair.near.is_usable(NOW - timedelta(seconds=1))
    assert not pair.near.is_usable(NOW)
    assert pair.near.has_expired(NOW)


@pytest.mark.parametrize("is_ended", [True, False])
def test_a_link_that_ended_or_on_which_something_came_is_of_no_use(pair, is_ended):
    if is_ended:
        pair.bases[1].close()
    else:
        pair.bases[1].send(Finish())
    assert not pair.near.is_usable(NOW)


# --- handles ---------------------------------------------------------------------------------


def test_both_sides_make_the_same_handle(pair):
    for _ in range(2):
        near, far = pair.turns()
        handles = {end.handle("secret", "ticket") for end in (pair.near, pair.far)}
        assert len(handles) == 1
        assert len(handles.pop()) == 16
        pair.end(near, far)


def test_a_handle_is_of_one_ticket_one_link_and_one_turn(pair):
    other = Pair()
    handles = [other.near.handle("secret", "ticket")]
    for _ in range(3):
        handles += [
            pair.near.handle(*given)
            for given in (("secret", "ticket"), ("secrets", "ticket"), ("secret", "tickets"))
        ]
        pair.end(*pair.turns())
    assert len(set(handles)) == len(handles) == 10
    other.close()


def test_a_handle_is_of_these_two_movers():
    ours, theirs = socket.socketpair()
    with Link(ours, "x") as link, theirs:
        nonces = b"a" * 16, b"b" * 16
        names = [("near", "far"), ("far", "near"), ("nea", "rfar"), ("", "nearfar")]
        found = {
            Standing(link, (one, nonces[0]), (other, nonces[1])).handle("secret", "ticket")
            for one, other in names
        }
        assert len(found) == len(names)


@pytest.mark.parametrize("size", [0, 15, 17])
def test_a_nonce_of_another_size_is_refused(size):
    ours, theirs = socket.socketpair()
    with Link(ours, "x") as one, Link(theirs, "y") as other:
        with pytest.raises(ProtocolError, match="nonce"):
            standing(one, Stand(b"n" * size), "far", "near")
        other.send(Stands(b"n" * size))
        with pytest.raises(ProtocolError, match="Stands"):
            stood(one, "near", "far")
