"""Who gets a task's data connection: exactly the mover with that task's ticket, once, in time."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from road.plain import ManualClock, PlainListener, PlainPeer, connected
from standby.errors import LinkError, ProtocolError, StandbyError, TicketRefused, error_to_wire
from standby.road.connections import (
    BETWEEN_WANS,
    FROM_WAN,
    ROLES,
    TO_REPOSITORY,
    TO_TARGET,
    TO_WAN,
    Errand,
    InheritedConnections,
    ServiceConnections,
    Ticket,
    new_ticket,
    ticket_text,
)
from standby.wire.link import Link
from standby.wire.messages import Attach, Attached, Failed, Finish, Finished

ERRAND = Errand("task", TO_TARGET, "disk", "replica", 3)


class Target:
    """A mover that waits: its connections behind a listener."""

    def __init__(self, clock: ManualClock, park_s: float, accept_timeout_s: float) -> None:
        self.connections = ServiceConnections(
            "dst", self._connect, clock, park_s=park_s, accept_timeout_s=accept_timeout_s
        )
        self.listener = PlainListener(self._on_link)
        self.refused: Future[StandbyError] = Future()

    def _connect(self, *arguments: Any) -> Link:
        raise AssertionError(arguments)

    def _on_link(self, link: Link, peer: PlainPeer) -> None:
        message, _ = link.receive()
        assert isinstance(message, Attach)
        try:
            self.connections.offer(link, message, peer)
        except StandbyError as exc:
            link.send(Failed(0, error_to_wire(exc)))
            link.close()
            self.refused.set_result(exc)

    def accept(self, ticket: Ticket, errand: Errand = ERRAND) -> Future[str]:
        """Wait for the ticket's connection and answer one `Finish` on it."""
        ended: Future[str] = Future()

        def wait() -> None:
            try:
                spec = {"accept": msgspec.to_builtins(ticket)}
                with self.connections.take(spec, errand) as (link, ring):
                    assert ring is None
                    message, _ = link.receive()
                    assert isinstance(message, Finish)
                    link.send(Finished(0, 0))
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
def target(clock):
    made = Target(clock, 10, 10)
    yield made
    made.close()


@pytest.fixture
def ticket(clock):
    return new_ticket("task", "replica", "disk", 3, TO_TARGET, "src", "dst", clock=clock)


def source(target: Target, clock, name: str = "src", role: str = "source") -> ServiceConnections:
    """A mover that connects, whoever it says it is."""

    def connect(address: str, their_name: str, their_role: str, own: str, timeout_s: float) -> Link:
        assert (their_name, own) == ("dst", "source")
        return connected(address, name, role, their_name)

    return ServiceConnections(name, connect, clock)


def presented(target: Target, ends: ServiceConnections, ticket: Ticket, errand=ERRAND) -> None:
    """Connect with the ticket, and use the connection."""
    where = {"name": "dst", "address": target.listener.address}
    spec = {"connect": where, "ticket": msgspec.to_builtins(ticket)}
    with ends.take(spec, replace(errand, generation=None)) as (link, _):
        link.send(Finish())
        assert isinstance(link.receive()[0], Finished)


def test_the_ticket_brings_both_ends_together(target, clock, ticket):
    served = target.accept(ticket)
    presented(target, source(target, clock), ticket)
    assert served.result(10) == "served"


def test_names_may_be_in_any_script(target, clock, ticket):
    ticket = msgspec.structs.replace(ticket, task="büro-№1 scsi:0:0", replica="Büro 東京")
    errand = replace(ERRAND, task=ticket.task, replica=ticket.replica)
    served = target.accept(ticket, errand)
    presented(target, source(target, clock), ticket, errand)
    assert served.result(10) == "served"


def test_a_task_that_could_not_connect_leaves_nothing_behind(target, clock, ticket):
    ends = source(target, clock, name="other")
    with pytest.raises(TicketRefused):
        presented(target, ends, ticket)
    assert not ends._links


def test_a_connection_may_be_ahead_of_the_servers_word(target, clock, ticket):
    ends = source(target, clock)
    link = connected(target.listener.address, "src", "source", "dst")
    link.send(Attach("task", ticket_text(ticket)))
    served = target.accept(ticket)
    assert isinstance(link.receive()[0], Attached)
    link.send(Finish())
    assert served.result(10) == "served"
    link.close()
    ends.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"task": "other"},
        {"disk": "other"},
        {"replica": "other"},
        {"generation": 2},
        {"direction": TO_REPOSITORY},
        {"direction": "anywhere"},
        {"target": "other"},
        {"expires_at": "2020-01-01T00:00:00+00:00"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_waiting_end_takes_no_ticket_for_something_else(target, ticket, changes):
    changed = msgspec.structs.replace(ticket, **changes)
    with pytest.raises(TicketRefused):
        target.accept(changed).result(10)


@pytest.mark.parametrize(
    "changes",
    [
        {"replica": "other"},
        {"disk": "other"},
        {"generation": 9},
        {"target": "other"},
        {"expires_at": "2100-01-01T00:00:00+00:00"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_ticket_that_was_altered_is_refused(target, ticket, changes):
    served = target.accept(ticket)
    link = connected(target.listener.address, "src", "source", "dst")
    link.send(Attach("task", ticket_text(msgspec.structs.replace(ticket, **changes))))
    assert isinstance(link.receive()[0], Failed)
    assert isinstance(target.refused.result(10), TicketRefused)
    link.close()
    target.connections.cancel("task")
    with pytest.raises(LinkError):
        served.result(10)


@pytest.mark.parametrize(("name", "role"), [("other", "source"), ("src", "target")])
def test_a_ticket_of_another_mover_is_refused(target, ticket, name, role):
    link = connected(target.listener.address, name, role, "dst")
    link.send(Attach("task", ticket_text(ticket)))
    assert isinstance(link.receive()[0], Failed)
    assert "another mover" in str(target.refused.result(10))
    link.close()


@pytest.mark.parametrize("text", ["", "nonsense", "{}", "[1]", "\x00"])
def test_what_is_no_ticket_is_refused(target, text):
    link = connected(target.listener.address, "src", "source", "dst")
    link.send(Attach("task", text))
    assert isinstance(link.receive()[0], Failed)
    assert isinstance(target.refused.result(10), TicketRefused)
    link.close()


def test_a_ticket_admits_once(target, clock, ticket):
    served = target.accept(ticket)
    presented(target, source(target, clock), ticket)
    served.result(10)
    with pytest.raises(TicketRefused):
        presented(target, source(target, clock), ticket)
    assert "nobody waits" in str(target.refused.result(10))
    with pytest.raises(TicketRefused, match="used before"):
        target.accept(ticket).result(10)


def test_a_ticket_that_has_expired_admits_nobody(target, clock, ticket):
    clock.advance(661)
    with pytest.raises(TicketRefused, match="expired"):
        target.accept(ticket).result(10)
    with pytest.raises(TicketRefused, match="expired"):
        presented(target, source(target, clock), ticket)
    link = connected(target.listener.address, "src", "source", "dst")
    link.send(Attach("task", ticket_text(ticket)))
    assert isinstance(link.receive()[0], Failed)
    assert "expired" in str(target.refused.result(10))
    link.close()


def test_clocks_a_little_apart_do_no_harm(target, clock, ticket):
    clock.advance(601)
    served = target.accept(ticket)
    presented(target, source(target, clock), ticket)
    assert served.result(10) == "served"


def test_a_ticket_nobody_waits_for_is_refused_in_time(clock, ticket):
    target = Target(clock, 0.01, 10)
    with pytest.raises(TicketRefused):
        presented(target, source(target, clock), ticket)
    assert "nobody waits" in str(target.refused.result(10))
    target.close()


def test_a_source_that_never_comes_is_waited_for_only_so_long(clock, ticket):
    target = Target(clock, 10, 0.01)
    with pytest.raises(LinkError, match="waited for it"):
        target.accept(ticket).result(10)
    target.close()


def test_a_task_that_waits_can_be_ended(target, ticket):
    served = target.accept(ticket)
    while not target.connections._waiting:
        pass
    target.connections.cancel("task")
    with pytest.raises(LinkError, match="was ended"):
        served.result(10)


def test_a_task_that_was_ended_before_it_came_to_wait_does_not_wait(target, ticket):
    target.connections.cancel("task")
    with pytest.raises(LinkError, match="was ended"):
        target.accept(ticket).result(5)


@pytest.mark.parametrize(
    "spec",
    [
        0,
        {},
        {"number": 0},
        {"accept": {"secret": "x"}},
        {"accept": None},
        {"connect": {}, "ticket": {}},
        {"connect": {"name": "dst", "address": "x"}},
    ],
)
def test_a_spec_that_is_none_is_the_servers_mistake(target, spec):
    with pytest.raises(ProtocolError), target.connections.take(spec, ERRAND):
        pass


@pytest.mark.parametrize("spec", [1, -1, {"number": 5}, {"accept": {}}, {}])
def test_a_child_mover_has_only_the_connections_it_was_given(spec):
    with pytest.raises(ProtocolError), InheritedConnections([], []).take(spec, ERRAND):
        pass


# --- by way of WAN accelerators ------------------------------------------------------------------


@pytest.mark.parametrize("direction", [TO_WAN, BETWEEN_WANS, FROM_WAN])
def test_each_hop_is_of_its_two_roles(target, clock, ticket, direction):
    connects, waits = ROLES[direction]
    assert "wan" in (connects, waits)
    ticket = msgspec.structs.replace(ticket, direction=direction)
    for role in ("source", "target", "wan", "server"):
        link = connected(target.listener.address, "src", role, "dst")
        link.send(Attach("task", ticket_text(ticket)))
        if role == connects:
            served = target.accept(ticket, replace(ERRAND, direction=direction))
            assert isinstance(link.receive()[0], Attached)
            link.send(Finish())
            assert served.result(10) == "served"
        else:
            assert isinstance(link.receive()[0], Failed)
            assert "another mover" in str(target.refused.result(10))
            target.refused = Future()
        link.close()


@pytest.mark.parametrize("direction", [TO_WAN, BETWEEN_WANS, FROM_WAN])
def test_a_way_through_accelerators_is_taken_where_it_will_do(target, ticket, direction):
    ticket = msgspec.structs.replace(ticket, direction=direction)
    target.connections._accept_timeout_s = 0.01
    for or_wan in ("", TO_WAN, FROM_WAN):
        error = LinkError if or_wan == direction else TicketRefused
        with pytest.raises(error):
            target.accept(ticket, replace(ERRAND, or_wan=or_wan)).result(10)
        ticket = msgspec.structs.replace(ticket, secret=ticket.secret + "x")


def test_no_accelerator_takes_a_ticket_past_it(target, ticket):
    with pytest.raises(TicketRefused):
        target.accept(ticket, replace(ERRAND, direction=TO_WAN)).result(10)
