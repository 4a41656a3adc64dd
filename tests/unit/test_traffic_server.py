"""Rates are lent to movers while sessions run, from the first word of a link on."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from cli.processes import wait_until
from clocks import HeldClock
from standby.clock import Clock
from standby.errors import ProtocolError
from standby.road.owners import Owner, working_for
from standby.road.traffic import TrafficVerbs
from standby.server.schedule import Window
from standby.server.traffic import FLOOR_SHARE, LASTS_S, TrafficRule
from standby.server.traffic_server import QUICK_S, TrafficServer
from standby.wire.link import Link
from standby.wire.messages import Call
from standby.wire.pacing import pace
from standby.wire.throttle import Lease, Throttles

LIMIT_BPS = 10_000_000
MONDAY = datetime(2026, 11, 23, 6, 0, tzinfo=UTC)
HOURS = (Window(frozenset(range(5)), 8 * 60, 18 * 60),)


class NearMover:
    """A mover in this process; `answers` False: it is connected and hangs."""

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.throttles = Throttles(clock)
        self.verbs = TrafficVerbs(self.throttles)
        self.is_connected = self.answers = True
        self.asked = 0
        self.owners: dict[str, Owner] = {}

    def ask(self, verb: str, **arguments: Any) -> Any:
        wire = msgspec.msgpack.decode(msgspec.msgpack.encode(arguments))
        lender = arguments.get("lender", "")
        with working_for(self.owners.setdefault(lender, Owner(lender))):
            return self.verbs.call(verb, wire)

    def lose(self, clock: Clock) -> None:
        """All that are connected now end."""
        for owner in self.owners.values():
            owner.gone_at = clock.monotonic()

    def start_now(self, verb: str, **arguments: Any) -> Future[Any] | None:
        if not self.is_connected:
            return None
        self.asked += 1
        future: Future[Any] = Future()
        if self.answers:
            future.set_result(self.ask(verb, **arguments))
        return future

    def tell(self, verb: str, **arguments: Any) -> bool:
        self.ask(verb, **arguments)
        return True

    def rate_bps(self) -> float | None:
        (throttle,) = self.throttles.covering("10.1.0.1", "10.2.0.1")
        return throttle.rate_bps()


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock(MONDAY)


@pytest.fixture
def movers(clock: HeldClock) -> list[NearMover]:
    return [NearMover("px1", clock), NearMover("px2", clock)]


def made(movers: list[NearMover], clock: Clock, **more: Any) -> TrafficServer:
    rule = TrafficRule("wan", LIMIT_BPS, ("10.1.0.0/16",), ("10.2.0.0/16",), **more)
    return TrafficServer({"wan": rule}, UTC, lambda: movers, clock)  # type: ignore[arg-type, return-value]


@pytest.fixture
def server(movers: list[NearMover], clock: HeldClock) -> Iterator[TrafficServer]:
    server = made(movers, clock)
    yield server
    server.close()


def load(mover: NearMover, clock: HeldClock, weight: float) -> None:
    """A link of it has waited all the time."""
    (throttle,) = mover.throttles.covering("10.1.0.1", "10.2.0.1")
    if not throttle._flows:
        throttle.flow(weight)
    throttle._busy_s += 1e9


def test_a_new_link_begins_with_the_rules_and_a_rate(
    server: TrafficServer, movers: list[NearMover]
) -> None:
    server.greet("px1", movers[0].ask)
    server.greet("px2", movers[1].ask)
    assert movers[0].rate_bps() == LIMIT_BPS
    assert movers[1].rate_bps() == LIMIT_BPS * FLOOR_SHARE


def test_movers_get_shares_by_the_weights_of_their_links(
    server: TrafficServer, movers: list[NearMover], clock: HeldClock
) -> None:
    for mover in movers:
        server.greet(mover.name, mover.ask)
    is_settled = False
    for _ in range(10):
        for mover, weight in zip(movers, (1, 3), strict=True):
            load(mover, clock, weight)
        clock.advance(1)
        is_settled = server.lend()
        lent = server.lent_bps()["wan"]
    assert is_settled
    rates = [mover.rate_bps() or 0.0 for mover in movers]
    assert rates[1] / rates[0] == pytest.approx(3, rel=0.02)
    assert sum(rates) == pytest.approx(LIMIT_BPS, rel=0.03)
    assert lent["px1"] == pytest.approx(rates[0])


def test_two_servers_that_lend_the_same_limit_do_not_lend_it_twice(
    movers: list[NearMover], clock: HeldClock
) -> None:
    """Such as a daemon, and a `job start` of its own beside it."""
    servers = [made(movers, clock), made(movers, clock)]
    for server in servers:
        for mover in movers:
            server.greet(mover.name, mover.ask)
    turns = random.Random(5)
    between: list[TrafficServer] = []

    def lends_before_the_second_is_told(ask: Callable[..., Any]) -> Callable[..., Any]:
        def told(verb: str, **arguments: Any) -> Any:
            if verb == "traffic_rules" and between:
                between.pop().lend()
            return ask(verb, **arguments)

        return told

    movers[1].ask = lends_before_the_second_is_told(movers[1].ask)  # type: ignore[method-assign]
    rates = [0.0, 0.0]
    for number in range(200):
        for mover, weight in zip(movers, (1, 3), strict=True):
            if number > 150 or turns.random() < 0.7:
                load(mover, clock, weight)
        clock.advance(turns.uniform(0.1, 3))
        first, second = turns.sample(servers, 2)
        between += [second] * (turns.random() < 0.5)
        first.lend()
        rates = [mover.rate_bps() or 0.0 for mover in movers]
        assert sum(rates) <= LIMIT_BPS * (1 + 2 * FLOOR_SHARE), number
    assert rates[1] / rates[0] == pytest.approx(3, rel=0.05)
    assert sum(rates) == pytest.approx(LIMIT_BPS, rel=0.05)
    for server in servers:
        server.close()


def test_a_lease_lasts_from_when_the_mover_told_what_it_sends(
    movers: list[NearMover], clock: HeldClock
) -> None:
    """However long its answer was under way, the server knows when it is over."""
    (mover, _) = movers
    server = made([mover], clock)
    server.greet("px1", mover.ask)
    load(mover, clock, 1)
    ask = mover.ask

    def slow(verb: str, **arguments: Any) -> Any:
        if verb == "traffic_rules":
            clock.advance(LASTS_S - 1)
        return ask(verb, **arguments)

    mover.ask = slow  # type: ignore[method-assign]
    server.lend()
    assert mover.rate_bps() == LIMIT_BPS
    clock.advance(1)
    assert server.lent_bps()["wan"]["px1"] == LIMIT_BPS * FLOOR_SHARE
    assert mover.rate_bps() == LIMIT_BPS * FLOOR_SHARE
    server.close()


def test_what_a_lost_mover_was_lent_is_the_others_one_lease_after_it_was_heard(
    server: TrafficServer, movers: list[NearMover], clock: HeldClock
) -> None:
    for mover in movers:
        server.greet(mover.name, mover.ask)
    for _ in range(5):
        load(movers[0], clock, 4)
        clock.advance(QUICK_S)
        server.lend()
    assert movers[0].rate_bps() == pytest.approx(LIMIT_BPS, rel=0.02)
    movers[0].is_connected = False  # to the server: it goes on sending
    rates = []
    while len(rates) < 40:
        load(movers[1], clock, 1)
        clock.advance(QUICK_S)
        server.lend()
        sent = [mover.rate_bps() or 0.0 for mover in movers]
        assert sum(sent) <= LIMIT_BPS * (1 + 2 * FLOOR_SHARE)
        rates.append(sent[1])
    is_full = [rate > 0.98 * LIMIT_BPS for rate in rates]
    assert is_full.index(True) * QUICK_S == pytest.approx(LASTS_S, abs=2 * QUICK_S)
    assert all(is_full[is_full.index(True) :])


def test_a_mover_obeys_the_lowest_lease_that_is_not_over(
    movers: list[NearMover], clock: HeldClock
) -> None:
    (mover, _) = movers
    rule = TrafficRule("wan", LIMIT_BPS, ("10.1.0.0/16",)).spec
    for lender, rate_bps, lasts_s in (("a", 5e6, 15.0), ("b", None, 60.0), ("c", 1e6, 3.0)):
        mover.throttles.configure([rule], lender)
        mover.throttles.lend("wan", Lease(1, rate_bps, 1000.0, lasts_s), lender)
    assert mover.rate_bps() == 1e6
    clock.advance(3)
    assert mover.rate_bps() == 5e6
    clock.advance(12)
    assert mover.rate_bps() is None
    clock.advance(45)  # of all that ever lent nobody is left
    assert mover.rate_bps() == 1000
    assert mover.throttles.demands("b")["wan"].lease == 1
    assert mover.throttles.demands("d") == {}


def test_a_mover_that_hangs_is_asked_again_when_it_has_answered(
    server: TrafficServer, movers: list[NearMover], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("standby.server.traffic_server.ANSWER_S", 0.01)
    movers[0].answers = False
    movers[1].is_connected = False
    server.lend()
    server.lend()
    assert (movers[0].asked, movers[1].asked) == (1, 0)


def test_outside_of_its_hours_a_mover_without_its_server_is_limited_when_they_begin(
    movers: list[NearMover], clock: HeldClock
) -> None:
    server = made(movers, clock, windows=HOURS)
    server.greet("px1", movers[0].ask)
    assert movers[0].rate_bps() is None
    clock.advance(2 * 3600 - 1)
    assert movers[0].rate_bps() is None
    clock.advance(1)
    assert movers[0].rate_bps() == LIMIT_BPS * FLOOR_SHARE


def test_nothing_is_asked_while_no_session_runs(
    server: TrafficServer, movers: list[NearMover]
) -> None:
    assert server._thread is None
    with server.session(), server.session():
        wait_until(lambda: movers[0].asked > 0, "lending")
    wait_until(lambda: server._sessions == 0, "its end")
    server.close()
    assert server._thread is not None
    assert not server._thread.is_alive()


def test_without_rules_nothing_runs_and_old_rules_end(
    movers: list[NearMover], clock: HeldClock
) -> None:
    made(movers, clock).greet("px1", movers[0].ask)
    server = TrafficServer({}, UTC, lambda: movers, clock)  # type: ignore[arg-type, return-value]
    with server.session():
        assert server._thread is None
    movers[0].lose(clock)
    server.greet("px1", movers[0].ask)
    assert server.others_at("px1") == ["wan"]
    assert movers[0].rate_bps() == LIMIT_BPS
    clock.advance(LASTS_S)
    assert movers[0].rate_bps() is None
    server.greet("px1", movers[0].ask)
    assert server.others_at("px1") == []
    assert movers[0].throttles.covering("10.1.0.1", "10.2.0.1") == []


def test_servers_with_different_rules_both_have_theirs_obeyed(
    movers: list[NearMover], clock: HeldClock
) -> None:
    """Such as a daemon that has an older file than a `job start` beside it."""
    ours = made(movers, clock)
    rule = TrafficRule("slower", LIMIT_BPS // 4, (), ("10.2.0.0/16",))
    theirs = TrafficServer({"slower": rule}, UTC, lambda: movers, clock)  # type: ignore[arg-type, return-value]
    (mover, _) = movers
    ours.greet("px1", mover.ask)
    theirs.greet("px1", mover.ask)
    assert (ours.others_at("px1"), theirs.others_at("px1")) == ([], ["wan"])
    for _ in range(4):
        for server in (ours, theirs):
            for throttle in mover.throttles.covering("10.1.0.1", "10.2.0.1"):
                throttle._busy_s += 1e9
            clock.advance(1)
            server.lend()
    found = [throttle.rate_bps() for throttle in mover.throttles.covering("10.1.0.1", "10.2.0.1")]
    assert found == [pytest.approx(LIMIT_BPS // 4, rel=0.03), pytest.approx(LIMIT_BPS, rel=0.03)]
    for server in (ours, theirs):
        server.close()


def test_what_is_no_rule_is_refused(movers: list[NearMover]) -> None:
    with pytest.raises(ProtocolError, match="leases"):
        movers[0].ask("traffic_rules", rules=[], leases={"wan": 1})
    assert movers[0].verbs.call("ping", {}) is NotImplemented


def test_a_control_link_is_counted_and_asks_for_no_share() -> None:
    throttles = Throttles()
    made([], Clock()).greet("px1", lambda verb, **told: TrafficVerbs(throttles).call(verb, told))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    rule = TrafficRule("wan", LIMIT_BPS, ("127.0.0.0/8",))
    throttles.configure([rule.spec])
    with Link(ours, "far") as near, Link(theirs, "near") as far:
        pace(near, throttles, is_control=True)
        reading = threading.Thread(target=far.receive)
        reading.start()
        near.send(Call(1, "ping", {}))
        reading.join()
        demand = throttles.demands()["wan"]
    assert demand.rate_bps > 0
    assert demand.weight == 0
    assert throttles.demands()["wan"].rate_bps == 0


def test_a_link_that_has_ended_needs_no_pace() -> None:
    ours, theirs = socket.socketpair()
    link = Link(ours, "far")
    link.close()
    theirs.close()
    assert pace(link, Throttles()) is link
