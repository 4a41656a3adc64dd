"""Traffic rules on a mover: the rate is met, shared by weight, and control never waits."""

from __future__ import annotations

import heapq
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from clocks import HeldClock
from standby.clock import SYSTEM_CLOCK
from standby.units import KiB, MiB, format_rate, parse_rate
from standby.wire import messages
from standby.wire.fair_queue import ABSENCE_S, LENDERS_MAX, _Turn
from standby.wire.link import Link
from standby.wire.throttle import (
    PACKET_HEADERS,
    Lease,
    Pace,
    RuleSpec,
    Throttle,
    Throttles,
    wire_bytes,
)

EVER_S = 1e9


class Simulation:
    """Flows that ask again as soon as they were served, in time that is only counted."""

    def __init__(self, rate_bps: float, *weights: float, count: int = 64 * KiB) -> None:
        self.clock = HeldClock()
        self.throttle = Throttle(self.clock)
        self.throttle.lend(Lease(1, rate_bps, rate_bps, EVER_S))
        self.flows = [self.throttle.flow(weight) for weight in weights]
        self.count = count
        self.turns: dict[int, _Turn] = {}
        self.sent: Counter[int] = Counter()

    def run(self, duration_s: float, *active: int) -> None:
        for number in active:
            if number not in self.turns:
                self.turns[number] = self.throttle._ask(self.flows[number], self.count)
        until = self.clock.elapsed + duration_s
        while self.clock.elapsed < until:
            delays = []
            for number, turn in list(self.turns.items()):
                delay_s = self.throttle._try(turn)
                if delay_s == 0:
                    self.sent[number] += self.count
                    self.turns[number] = self.throttle._ask(self.flows[number], self.count)
                elif delay_s is not None:
                    delays.append(delay_s)
            if delays:
                self.clock.advance(min(delays))


@pytest.mark.parametrize(
    ("rate_bps", "count"),
    [(125_000, 4 * KiB), (12_500_000, 64 * KiB), (125_000_000, 64 * KiB)],
)
def test_the_rate_is_met_over_time(rate_bps: int, count: int) -> None:
    simulation = Simulation(rate_bps, 1.0, count=count)
    simulation.run(10, 0)
    assert simulation.sent.total() / 10 == pytest.approx(rate_bps, rel=0.01)


def test_flows_share_by_weight() -> None:
    simulation = Simulation(12_500_000, 1.0, 2.0, 4.0)
    simulation.run(5, 0, 1, 2)
    one, two, four = (simulation.sent[number] for number in range(3))
    assert two / one == pytest.approx(2, rel=0.05)
    assert four / one == pytest.approx(4, rel=0.05)


def test_a_flow_that_was_idle_has_saved_next_to_nothing_up() -> None:
    simulation = Simulation(12_500_000, 1.0, 1.0)
    simulation.run(20, 0)
    simulation.sent.clear()
    simulation.run(2, 0, 1)
    ahead = simulation.sent[1] - simulation.sent[0]
    assert 0 <= ahead <= 12_500_000 * ABSENCE_S + 2 * simulation.count
    assert simulation.sent.total() / 2 == pytest.approx(12_500_000, rel=0.01)


def test_a_flow_that_comes_back_late_keeps_its_weight() -> None:
    simulation = Simulation(12_500_000, 1.0, 3.0)
    throttle = simulation.throttle
    simulation.run(0.5, 0, 1)
    simulation.sent.clear()
    for _ in range(100):  # the heavier one is away for 10 ms after each of its pieces
        simulation.run(0.02, 0, 1)
        turn = simulation.turns.pop(1)
        throttle._waiting = [entry for entry in throttle._waiting if entry[2] is not turn]
        heapq.heapify(throttle._waiting)
        simulation.flows[1].finish -= simulation.count / 3.0
        simulation.run(0.01, 0)
    # A third of the time is the lighter one's alone: 2 is what there is to have.
    assert simulation.sent[1] / simulation.sent[0] > 1.8


def test_what_is_charged_without_waiting_is_made_up_for() -> None:
    throttle = Throttle(HeldClock())
    throttle.lend(Lease(1, 1000.0, 1000.0, EVER_S))
    flow = throttle.flow()
    flow.charge(5000)
    assert throttle._try(throttle._ask(flow, 10)) == pytest.approx(5.0)


def test_without_a_limit_nothing_waits_and_all_is_counted() -> None:
    clock = HeldClock()
    throttle = Throttle(clock)
    flow = throttle.flow(3)
    for _ in range(100):
        flow.take(MiB)
    clock.advance(10)
    demand = throttle.demand()
    assert demand.rate_bps == 10 * MiB
    assert not demand.is_limited
    assert demand.weight == 3
    flow.close()
    assert throttle.demand().weight == 0


def test_a_lease_that_ran_out_leaves_the_floor() -> None:
    clock = HeldClock()
    throttle = Throttle(clock)
    throttle.lend(Lease(7, 1e6, 1e4, 15))
    assert throttle.rate_bps() == 1e6
    clock.advance(15)
    assert throttle.rate_bps() == 1e4
    throttle.lend(Lease(8, None, 1e4, 3600))  # until the rule's hours begin
    clock.advance(3599)
    assert throttle.rate_bps() is None
    clock.advance(1)
    assert throttle.rate_bps() == 1e4
    assert throttle.demand().lease == 8


def test_a_new_rate_counts_for_those_that_wait_already() -> None:
    throttle = Throttle()
    throttle.lend(Lease(1, 1.0, 1.0, EVER_S))
    flow = throttle.flow()
    flow.charge(1000)  # 17 minutes at that rate
    done = threading.Event()

    def take() -> None:
        flow.take(10)
        done.set()

    thread = threading.Thread(target=take)
    thread.start()
    throttle.lend(Lease(2, 1e9, 1e9, EVER_S))
    assert done.wait(10)
    thread.join()


def test_many_threads_share_a_real_rate() -> None:
    throttle = Throttle()
    throttle.lend(Lease(1, 20e6, 20e6, EVER_S))
    flows = {weight: throttle.flow(weight) for weight in (1.0, 3.0)}
    sent: Counter[float] = Counter()
    started = SYSTEM_CLOCK.monotonic()

    def work(weight: float) -> None:
        while SYSTEM_CLOCK.monotonic() < started + 1.0:
            flows[weight].take(64 * KiB)
            sent[weight] += 64 * KiB

    threads = [threading.Thread(target=work, args=(weight,)) for weight in flows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed_s = SYSTEM_CLOCK.monotonic() - started
    assert sent.total() <= 20e6 * elapsed_s * 1.05 + 3 * 64 * KiB
    assert sent[3.0] / sent[1.0] == pytest.approx(3, rel=0.25)


@pytest.mark.parametrize(
    ("count", "is_tls", "expected"),
    [
        (1, False, 1 + 66),
        (1448, False, 1448 + 66),
        (1449, False, 1449 + 2 * 66),
        (1, True, 1 + 22 + 66),
        (16384, True, 16384 + 22 + 12 * 66),
        (65536, True, 65536 + 4 * 22 + 46 * 66),
    ],
)
def test_headers_and_records_are_counted(count: int, is_tls: bool, expected: int) -> None:
    assert wire_bytes(count, 1448, PACKET_HEADERS[socket.AF_INET], is_tls) == expected


@pytest.mark.parametrize(
    ("rule", "source", "target", "expected"),
    [
        (RuleSpec("a"), "10.0.0.1", "10.1.0.1", True),
        (RuleSpec("a", ("10.0.0.0/24",)), "10.0.0.1", "10.1.0.1", True),
        (RuleSpec("a", ("10.0.0.0/24",)), "10.0.1.1", "10.1.0.1", False),
        (RuleSpec("a", ("10.0.0.0/24",), ("10.1.0.0/16", "::/0")), "10.0.0.1", "10.1.9.9", True),
        (RuleSpec("a", (), ("10.1.0.0/16",)), "10.1.0.1", "10.0.0.1", False),
        (RuleSpec("a", ("10.0.0.0/8",)), "::ffff:10.0.0.1", "::1", True),
        (RuleSpec("a", ("fe80::/10",)), "fe80::1%eth0", "::1", True),
        (RuleSpec("a", ("10.0.0.0/8",)), "fd00::1", "::1", False),
    ],
)
def test_a_rule_covers_a_direction(
    rule: RuleSpec, source: str, target: str, expected: bool
) -> None:
    assert rule.covers(source, target) is expected


def test_rules_that_come_and_go_reach_links_that_run() -> None:
    throttles = Throttles(HeldClock())
    pace = Pace(throttles, ("10.0.0.1", "10.1.0.1"), 2.0)
    assert pace.take(5 * MiB) == 5 * MiB
    throttles.configure([RuleSpec("wan", (), ("10.1.0.0/16",)), RuleSpec("other", ("9.0.0.0/8",))])
    assert pace.take(5 * MiB) == 5 * MiB
    throttles.lend("wan", Lease(1, 12.5e6, 1e5, EVER_S))
    throttles.lend("gone", Lease(1, 1.0, 1.0, EVER_S))
    assert pace.take(5 * MiB) == 64 * KiB
    assert throttles.demands()["wan"].weight == 2
    throttles.lend("wan", Lease(2, 125e3, 1e5, EVER_S))
    control = Pace(throttles, ("10.0.0.1", "10.1.0.1"), 1.0, is_control=True)
    assert control.take(MiB) == MiB  # 8 s at that rate
    throttles.configure([])
    assert pace.take(5 * MiB) == 5 * MiB
    control.close()
    pace.close()


WAN = RuleSpec("wan", (), ("10.1.0.0/16",))
TO_WAN = ("10.0.0.1", "10.1.0.1")


class Servers:
    """Servers that tell one mover their rules, some of them connected."""

    def __init__(self) -> None:
        self.clock = HeldClock()
        self.throttles = Throttles(self.clock)
        self.connected: set[str] = set()

    def tell(self, name: str, *rules: RuleSpec) -> list[str]:
        self.connected.add(name)
        return self.throttles.configure(rules, name, lambda: name in self.connected)

    def rates(self) -> list[float | None]:
        """Of the rules for what goes to 10.1.0.0/16."""
        return [found.rate_bps() for found in self.throttles.covering(*TO_WAN)]


def test_one_servers_rules_are_not_undone_by_another_that_has_others() -> None:
    servers = Servers()
    assert servers.tell("daemon", WAN) == []
    servers.throttles.lend("wan", Lease(1, 12.5e6, 1e5, 15), "daemon")
    assert servers.tell("job start") == ["wan"]
    assert servers.rates() == [12.5e6]
    wider = RuleSpec("wan", (), ("10.0.0.0/8",))
    assert servers.tell("job start", wider) == ["wan"]
    servers.throttles.lend("wan", Lease(1, 125e3, 1e3, 15), "job start")
    assert sorted(rate or 0.0 for rate in servers.rates()) == [125e3, 12.5e6]
    assert servers.throttles.demands("daemon")["wan"].lease == 1


def test_a_rule_whose_server_is_gone_ends_where_another_is_there() -> None:
    servers = Servers()
    servers.tell("job start", WAN)
    servers.throttles.lend("wan", Lease(1, 1e6, 1e4, 15), "job start")
    servers.tell("daemon")
    servers.connected.discard("job start")
    assert servers.rates() == [1e6]
    servers.clock.advance(15)
    assert servers.rates() == [None]
    servers.connected.discard("daemon")
    assert servers.rates() == [1e4]  # nobody is there who could say that it is over
    assert servers.tell("daemon") == []
    assert servers.rates() == []


def test_a_rule_that_another_server_has_too_stays_with_its_floor() -> None:
    servers = Servers()
    for name in ("one", "other"):
        servers.tell(name, WAN)
        servers.throttles.lend("wan", Lease(1, 1e6, 1e4, 15), name)
    servers.connected.discard("one")
    servers.clock.advance(15)
    assert servers.rates() == [1e4]


def test_rules_of_servers_without_number_are_not_kept() -> None:
    servers = Servers()
    for number in range(2 * LENDERS_MAX):
        servers.tell(f"server {number}", RuleSpec(f"wan {number}"))
    assert len(servers.rates()) == LENDERS_MAX


@pytest.fixture
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two ends of a TCP connection on the loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


def received(far: Link, count: int, then: Callable[[], None]) -> threading.Thread:
    """A thread that takes `count` messages."""

    def receive() -> None:
        for _ in range(count):
            far.receive()
        then()

    thread = threading.Thread(target=receive)
    thread.start()
    return thread


def test_a_link_keeps_to_its_throttle(tcp_pair: tuple[socket.socket, socket.socket]) -> None:
    throttles = Throttles()
    throttles.configure([RuleSpec("wan", ("127.0.0.0/8",), ("127.0.0.1/32",))])
    throttles.lend("wan", Lease(1, 20e6, 1e5, EVER_S))
    near, far = (Link(end, "peer") for end in tcp_pair)
    near.throttle = throttles.pace(tcp_pair[0], is_tls=False)
    payload = bytes(MiB)
    ended: list[float] = []
    thread = received(far, 10, lambda: ended.append(SYSTEM_CLOCK.monotonic()))
    started = SYSTEM_CLOCK.monotonic()
    for number in range(10):
        near.send(messages.Call(number, "take", {}), payload, payload[:5])
    thread.join()
    # 10 MiB and headers: 0.53 s where they are the loopback's, 0.55 s where they are Ethernet's
    assert 0.5 < ended[0] - started < 1.5
    assert near.sent_bytes == far.received_bytes
    near.close()
    far.close()
    assert throttles.demands()["wan"].weight == 0


def test_a_socket_pair_has_no_pace() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert Throttles().pace(one) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100 Mbit/s", 12_500_000),
        ("1.5 Gbit/s", 187_500_000),
        ("512kbit/s", 64_000),
        ("12.5 MB/s", 12_500_000),
        ("10 MiB/s", 10 * MiB),
    ],
)
def test_a_rate_is_read(text: str, expected: int) -> None:
    assert parse_rate(text) == expected


@pytest.mark.parametrize("text", ["", "100", "100 Mbit", "100/s", "fast", "-1 MB/s", "1e3 MB/s"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate"):
        parse_rate(text)


@pytest.mark.parametrize(
    ("rate_bps", "text"),
    [(12_500_000, "100 Mbit/s"), (187_500_000, "1.5 Gbit/s"), (100_000, "800 kbit/s")],
)
def test_a_rate_is_written(rate_bps: int, text: str) -> None:
    assert format_rate(rate_bps) == text
