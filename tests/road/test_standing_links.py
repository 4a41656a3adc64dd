"""Connections between WAN accelerators stand: a task's handle admits it there exactly as its ticket
would on a connection of its own, and nothing else is admitted."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from road.plain import ManualClock, PlainListener, PlainPeer, connected
from standby.clock import SYSTEM_CLOCK
from standby.errors import (
    CertificateRefused,
    LinkError,
    PeerBusy,
    ProtocolError,
    RefusedByPeer,
    StandbyError,
    TicketRefused,
    error_from_wire,
    error_to_wire,
)
from standby.road import connections as connections_module
from standby.road.connections import (
    BETWEEN_WANS,
    TO_WAN,
    Errand,
    ServiceConnections,
    Ticket,
    new_ticket,
    ticket_text,
)
from standby.wire import tls
from standby.wire.identity import IdentityFolder
from standby.wire.link import Link
from standby.wire.messages import Attached, Begin, Failed, Finish, Finished, Mark, Stand, Stands
from standby.wire.standing import Standing, Turn, stood
from wires import Installation

ERRAND = Errand("task", BETWEEN_WANS, "disk", "replica")
WAIT_S = 20


class Far:
    """An accelerator at the target."""

    def __init__(self, clock: ManualClock) -> None:
        self.connections = ServiceConnections(
            "far", self._connect, clock, park_s=0.2, accept_timeout_s=10
        )
        self.listener = PlainListener(self._on_link)
        self.links: list[Link] = []
        self.refused: list[StandbyError] = []

    def _connect(self, *arguments: Any) -> Link:
        raise AssertionError(arguments)

    def _on_link(self, link: Link, peer: PlainPeer) -> None:
        self.links.append(link)
        try:
            message, _ = link.receive()
            assert isinstance(message, Stand)
            self.connections.stand(link, message, peer)
        except StandbyError as exc:
            self.refused.append(exc)
            try:
                link.send(Failed(0, error_to_wire(exc)))
            except LinkError:
                pass
            link.close()

    def accept(self, ticket: Ticket, errand: Errand = ERRAND, *, is_whole: bool = True) -> Any:
        """Wait for the ticket's turn and serve it."""
        ended: Future[str] = Future()

        def wait() -> None:
            try:
                spec = {"accept": msgspec.to_builtins(ticket)}
                with self.connections.take(spec, errand) as (link, _):
                    assert isinstance(link, Turn)
                    assert link.receive()[0] == Finish()
                    link.send(Finished(1, 2))
                    if is_whole:
                        link.say_over()
                        with pytest.raises(LinkError, match="over"):
                            link.receive()
                ended.set_result("served")
            except BaseException as exc:
                ended.set_exception(exc)

        threading.Thread(target=wait, daemon=True).start()
        return ended

    def close(self) -> None:
        self.listener.close()
        self.connections.close()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def far(clock):
    made = Far(clock)
    yield made
    made.close()


@pytest.fixture
def near(clock):
    def connect(address: str, name: str, role: str, own_role: str, timeout_s: float) -> Link:
        assert (name, role, own_role) == ("far", "wan", "wan")
        return connected(address, "near", "wan", "far")

    made = ServiceConnections("near", connect, clock)
    yield made
    made.close()


def ticket_for(clock, task: str = "task", **changes: Any) -> Ticket:
    made = new_ticket(task, "replica", "disk", 3, BETWEEN_WANS, "near", "far", clock=clock)
    return msgspec.structs.replace(made, **changes)


def used(far: Far, near: ServiceConnections, ticket: Ticket, *, is_whole: bool = True) -> Turn:
    """Take a turn with that ticket."""
    where = {"name": "far", "address": far.listener.address}
    spec = {"connect": where, "ticket": msgspec.to_builtins(ticket)}
    with near.take(spec, replace(ERRAND, task=ticket.task)) as (link, _):
        assert isinstance(link, Turn)
        link.send(Finish())
        assert link.receive()[0] == Finished(1, 2)
        if is_whole:
            link.say_over()
            with pytest.raises(LinkError, match="over"):
                link.receive()
        return link


def cycle(far: Far, near: ServiceConnections, clock, task: str = "task") -> Turn:
    ticket = ticket_for(clock, task)
    served = far.accept(ticket, replace(ERRAND, task=task))
    turn = used(far, near, ticket)
    assert served.result(WAIT_S) == "served"
    return turn


def test_tasks_take_turns_on_one_connection(far, near, clock):
    turns = [cycle(far, near, clock, f"task {number}") for number in range(3)]
    assert len(far.links) == 1
    # Begin with a handle, Finish, Over; Attached, Finished, Over: no ticket travels.
    costs = {(turn.sent_bytes, turn.received_bytes) for turn in turns[1:]}
    assert costs == {(22 + 3 + 3, 3 + 6 + 3)}


def test_tasks_at_once_have_connections_of_their_own(far, near, clock):
    tickets = [ticket_for(clock, f"task {number}") for number in range(2)]
    where = {"name": "far", "address": far.listener.address}
    for _ in range(2):
        served = [far.accept(one, replace(ERRAND, task=one.task)) for one in tickets]
        specs = [{"connect": where, "ticket": msgspec.to_builtins(one)} for one in tickets]
        errands = [replace(ERRAND, task=one.task) for one in tickets]
        with (
            near.take(specs[0], errands[0]) as (one, _),
            near.take(specs[1], errands[1]) as (
                other,
                _,
            ),
        ):
            for link in (one, other):
                assert isinstance(link, Turn)
                link.send(Finish())
                assert link.receive()[0] == Finished(1, 2)
                link.say_over()
                with pytest.raises(LinkError):
                    link.receive()
        for future in served:
            assert future.result(WAIT_S) == "served"
        tickets = [msgspec.structs.replace(one, secret=one.secret + "x") for one in tickets]
    assert len(far.links) == 2


def test_a_turn_may_be_ahead_of_the_servers_word(far, near, clock):
    far.connections._park_s = WAIT_S
    ticket = ticket_for(clock)
    begun: Future[Turn] = Future()
    threading.Thread(target=lambda: begun.set_result(used(far, near, ticket)), daemon=True).start()
    while not far.connections._parked:
        pass
    assert far.accept(ticket).result(WAIT_S) == "served"
    assert begun.result(WAIT_S).is_whole


# --- what is refused -------------------------------------------------------------------------


MADE: list[Link] = []


@pytest.fixture(autouse=True)
def _all_closed():
    MADE.clear()
    yield
    for link in MADE:
        link.close()


def link_to(far: Far, name: str, role: str) -> Link:
    """A connection of that mover, closed behind the test."""
    MADE.append(connected(far.listener.address, name, role, "far"))
    return MADE[-1]


class Peer:
    """A mover that says on a standing link what it likes."""

    def __init__(self, far: Far, name: str = "near", role: str = "wan") -> None:
        self.link = link_to(far, name, role)
        self.end: Standing = stood(self.link, name, "far")

    def begin(self, handle: bytes) -> Any:
        """What is answered to that handle."""
        self.turn = self.end.next_turn()
        self.turn.send(Begin(handle))
        return self.turn.receive()[0]

    def handle(self, ticket: Ticket) -> bytes:
        """That of the next turn."""
        self.end.count += 1
        made = self.end.handle(ticket.secret, ticket_text(ticket))
        self.end.count -= 1
        return made


def refused(answer: Any) -> str:
    assert isinstance(answer, Failed)
    error = error_from_wire(answer.error)
    assert isinstance(error, TicketRefused)
    return str(error)


@pytest.mark.parametrize(
    "handle", [b"", b"h", b"\0" * 16, b"h" * 17, b"h" * 4096], ids=lambda handle: str(len(handle))
)
def test_what_is_no_handle_is_refused(far, clock, handle):
    served = far.accept(ticket_for(clock))
    assert "nobody waits" in refused(Peer(far).begin(handle))
    assert not served.done()


@pytest.mark.parametrize(
    "changes",
    [
        {"secret": "other"},
        {"replica": "other"},
        {"disk": "other"},
        {"generation": 9},
        {"task": "other"},
        {"expires_at": "2100-01-01T00:00:00+00:00"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_handle_of_another_ticket_is_refused(far, clock, changes):
    ticket = ticket_for(clock)
    served = far.accept(ticket)
    peer = Peer(far)
    altered = msgspec.structs.replace(ticket, **changes)
    assert "nobody waits" in refused(peer.begin(peer.handle(altered)))
    assert not served.done()


def test_a_handle_that_was_seen_is_of_no_use_again(far, clock):
    ticket = ticket_for(clock)
    served = far.accept(ticket)
    peer = Peer(far)
    seen = peer.handle(ticket)
    assert peer.begin(seen) == Attached()
    peer.turn.send(Finish())
    assert peer.turn.receive()[0] == Finished(1, 2)
    peer.turn.say_over()
    with pytest.raises(LinkError, match="over"):
        peer.turn.receive()
    assert served.result(WAIT_S) == "served"
    again = far.accept(msgspec.structs.replace(ticket, secret="another"))
    assert "nobody waits" in refused(peer.begin(seen))  # the same link
    other = Peer(far)
    assert "nobody waits" in refused(other.begin(seen))
    third = Peer(far)
    assert "nobody waits" in refused(third.begin(third.handle(ticket)))  # a ticket that was used
    assert not again.done()


def test_a_handle_of_another_link_or_turn_is_refused(far, clock):
    ticket = ticket_for(clock)
    served = far.accept(ticket)
    one, other = Peer(far), Peer(far)
    assert "nobody waits" in refused(other.begin(one.handle(ticket)))
    one.end.count += 1
    ahead = one.handle(ticket)
    one.end.count -= 1
    assert "nobody waits" in refused(one.begin(ahead))
    assert not served.done()


def test_a_ticket_of_another_mover_is_refused(far, clock):
    served = far.accept(ticket_for(clock))
    thief = Peer(far, "thief")
    assert "nobody waits" in refused(thief.begin(thief.handle(ticket_for(clock))))
    thief = Peer(far, "thief")
    assert "nobody waits" in refused(thief.begin(thief.handle(served_ticket(far))))
    assert not served.done()


def served_ticket(far: Far) -> Ticket:
    (waiting,) = far.connections._waiting.values()
    return waiting.ticket


def test_a_ticket_for_another_hop_is_refused(far, clock):
    ticket = ticket_for(clock, direction=TO_WAN)
    served = far.accept(ticket, replace(ERRAND, direction=TO_WAN))
    peer = Peer(far)
    assert "nobody waits" in refused(peer.begin(peer.handle(ticket)))
    assert not served.done()


def test_a_ticket_that_expired_while_it_was_waited_for_is_refused(far, clock):
    ticket = ticket_for(clock)
    served = far.accept(ticket)
    while not far.connections._waiting:
        pass
    clock.advance(661)
    peer = Peer(far)
    assert "expired" in refused(peer.begin(peer.handle(ticket)))
    assert not served.done()


def test_a_task_that_was_cancelled_gets_no_turn(far, near, clock):
    ticket = ticket_for(clock)
    far.connections.cancel("task")
    with pytest.raises(LinkError, match="was ended"):
        far.accept(ticket).result(WAIT_S)
    with pytest.raises(TicketRefused, match="nobody waits"):
        used(far, near, ticket)


def test_only_accelerators_have_links_stand(far):
    link = link_to(far, "near", "source")
    link.send(Stand(b"n" * 16))
    answer, _ = link.receive()
    assert isinstance(answer, Failed)
    assert isinstance(error_from_wire(answer.error), ProtocolError)


def test_what_comes_between_turns_must_be_a_begin(far):
    peer = Peer(far)
    peer.link.send(Mark(5))
    answer, _ = peer.link.receive()
    assert isinstance(answer, Failed)
    assert "expected Begin" in str(error_from_wire(answer.error))


def test_no_more_links_stand_than_there_may_be(far, monkeypatch):
    monkeypatch.setattr(connections_module, "STANDING_MAX", 2)
    peers = [Peer(far), Peer(far)]
    link = link_to(far, "near", "wan")
    link.send(Stand(b"n" * 16))
    answer, _ = link.receive()
    assert isinstance(answer, Failed)
    assert isinstance(error_from_wire(answer.error), PeerBusy)
    assert all(peer.link.failure is None for peer in peers)


# --- what ends -------------------------------------------------------------------------------


def test_a_task_that_fails_takes_its_link_with_it_and_no_other(far, near, clock):
    cycle(far, near, clock)
    ticket = ticket_for(clock)
    served = far.accept(ticket, is_whole=False)
    used(far, near, ticket, is_whole=False)
    served.result(WAIT_S)
    cycle(far, near, clock)
    assert len(far.links) == 2


def test_a_link_that_ended_between_turns_is_made_anew(far, near, clock):
    cycle(far, near, clock)
    far.links[0].shutdown()
    cycle(far, near, clock)
    assert len(far.links) == 2
    assert far.refused == []


def test_a_link_that_ends_as_its_turn_begins_is_made_anew(far, near, clock, monkeypatch):
    cycle(far, near, clock)
    monkeypatch.setattr(Standing, "is_usable", lambda self, now: True)
    far.links[0].close()
    cycle(far, near, clock)
    assert len(far.links) == 2


def test_a_link_that_ends_when_its_turn_has_begun_is_no_refusal(far, near, clock, monkeypatch):
    """The ticket is used up: the task is tried again, as with any link that broke."""
    cycle(far, near, clock)
    right, broken = connections_module._admitted, []

    def admitted(link: Link, word: Any) -> None:
        right(link, word)
        if not broken:
            broken.append(link)
            link.shutdown()
            raise LinkError("far", "broke")

    monkeypatch.setattr(connections_module, "_admitted", admitted)
    ticket = ticket_for(clock)
    served = far.accept(ticket)
    with pytest.raises(LinkError, match="broke"):
        used(far, near, ticket)
    with pytest.raises(LinkError):
        served.result(WAIT_S)
    assert len(far.links) == 2


def test_a_side_that_ends_takes_its_standing_links_along(far, near, clock):
    cycle(far, near, clock)
    far.connections.close()
    (idle,) = near._idle._idle.values()
    base = idle[0].base
    with pytest.raises(LinkError):
        base.receive()
    near.close()
    assert near._idle.take("far", far.listener.address) is None


def test_a_certificate_that_ends_ends_the_standing_link(far, near, clock, monkeypatch):
    cycle(far, near, clock)
    monkeypatch.setattr(Standing, "has_expired", lambda self, now: self.count == 1)
    cycle(far, near, clock)
    assert len(far.links) == 2


def test_answers_that_are_none_are_refused(clock):
    def lie(link: Link, peer: PlainPeer) -> None:
        message, _ = link.receive()
        assert isinstance(message, Stand)
        link.send(Stands(b"short"))
        MADE.append(link)

    listener = PlainListener(lie)
    ends = ServiceConnections(
        "near", lambda address, *_: connected(address, "near", "wan", "far"), clock
    )
    where = {"name": "far", "address": listener.address}
    spec = {"connect": where, "ticket": msgspec.to_builtins(ticket_for(clock))}
    with pytest.raises(ProtocolError, match="Stands"), ends.take(spec, ERRAND):
        pass
    assert not ends._links
    ends.close()
    listener.close()


# --- with certificates -----------------------------------------------------------------------


class TlsFar(Far):
    """An accelerator at the target whose links are those of certificates."""

    def __init__(self, identity: IdentityFolder) -> None:
        self.connections = ServiceConnections("far", self._connect, park_s=0.2)
        self.links: list[Link] = []
        self.refused: list[StandbyError] = []
        self.listener = tls.Listener("127.0.0.1:0", identity, self._on_link)  # type: ignore[assignment]


@pytest.fixture
def site(tmp_path):
    return Installation(tmp_path)


@pytest.fixture
def identities(site):
    return site.identity("near", "wan"), site.identity("far", "wan")


@pytest.fixture
def tls_far(identities):
    made = TlsFar(identities[1])
    yield made
    made.close()


@pytest.fixture
def tls_near(identities):
    def connect(address: str, name: str, role: str, own_role: str, timeout_s: float) -> Link:
        return tls.connect(address, identities[0], name, role, timeout_s, role=own_role)

    made = ServiceConnections("near", connect)
    yield made
    made.close()


def test_links_stand_over_tls(tls_far, tls_near):
    turns = [cycle(tls_far, tls_near, SYSTEM_CLOCK, f"task {number}") for number in range(3)]
    assert len(tls_far.links) == 1
    assert {(turn.sent_bytes, turn.received_bytes) for turn in turns[1:]} == {(28, 12)}
    remote = tls_far.links[0].remote
    assert remote is not None
    assert remote.not_after > SYSTEM_CLOCK.now()


@pytest.mark.parametrize("who", ["near", "far"])
def test_a_mover_that_is_revoked_loses_its_standing_link(site, identities, tls_far, tls_near, who):
    cycle(tls_far, tls_near, SYSTEM_CLOCK)
    (idle,) = tls_near._idle._idle.values()
    base = idle[0].base
    site.authority.revoke(who)
    is_near = who == "near"
    identities[is_near].install_revocations(site.authority.revocations())
    here, there = (tls_far.links[0], base) if is_near else (base, tls_far.links[0])
    assert isinstance(here.failure, CertificateRefused)
    with pytest.raises(LinkError):
        there.receive()
    ticket = ticket_for(SYSTEM_CLOCK)
    tls_far.accept(ticket)
    with pytest.raises((CertificateRefused, RefusedByPeer)):
        used(tls_far, tls_near, ticket)
    tls_far.connections.cancel("task")


@pytest.mark.parametrize("who", ["near", "far"])
def test_a_mover_that_is_revoked_loses_the_turn_under_way(site, identities, tls_far, tls_near, who):
    ticket = ticket_for(SYSTEM_CLOCK)
    served = tls_far.accept(ticket)
    where = {"name": "far", "address": tls_far.listener.address}
    spec = {"connect": where, "ticket": msgspec.to_builtins(ticket)}
    site.authority.revoke(who)
    with tls_near.take(spec, ERRAND) as (link, _):
        identities[who == "near"].install_revocations(site.authority.revocations())
        with pytest.raises(LinkError):
            link.receive()
    with pytest.raises(LinkError):
        served.result(WAIT_S)
    assert tls_near._idle.take("far", tls_far.listener.address) is None
