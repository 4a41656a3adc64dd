"""Traffic rules on a mover: how fast the links of a process may send, shared fairly among them.

A *rule* limits what travels from some addresses to others, over all movers together. The backup
server lends each mover a rate for it (`server.traffic`), so that all rates add up to the limit; two
servers, which do not know of each other, both lend all of it. A `Throttle` holds the process to the
lowest of the rates that it was lent, so the sum holds whoever lends. Every link that the rule
covers is a `Flow` of it with a weight. A link asks its `Pace` before each write, some tens of KiB
at a time, so that the rate is smooth.

What is counted is what an interface counts: payload, TLS records, TCP, IP and Ethernet headers.
What the peer sends back (acknowledgements) and what is sent again are not known here.

Order: start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996). A flow asks for one piece at a
time, and in a deficit round robin a flow without a second piece at hand loses its deficit: weights
would not hold. A flow that asks for nothing takes nothing, and saves no more up than ABSENCE_S.

Control links are counted and never wait (RULES 18): data waits the longer for it.
"""

from __future__ import annotations

import heapq
import ipaddress
import itertools
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from standby.clock import SYSTEM_CLOCK, Clock
from standby.units import KiB

PIECE_MAX = 64 * KiB
PIECE_MIN = 4 * KiB
PIECE_S = 0.02
"""A piece is what the rate carries in this time: 64 KiB from 26 Mbit/s on."""

BURST_S = 0.02
"""How much may be made up for after a wait that ended late. Waits end 0.1 ms late as a rule, 4 ms
on a busy machine of two cores."""

ABSENCE_S = 0.2
"""How long a flow may take to come back for its next piece without losing its turn. On a machine
with many more threads than cores that is tens of milliseconds; without this, 1 : 3 became 1 : 1.9.
"""

LENDERS_MAX = 32
"""Servers whose leases are kept: as a rule one, now and then some that were started beside it."""

TLS_RECORD = 16 * KiB
TLS_OVERHEAD = 22
"""Bytes that a TLS 1.3 record adds: 5 header, 1 content type, 16 tag (RFC 8446, 5.2)."""

PACKET_HEADERS = {socket.AF_INET: 14 + 20 + 32, socket.AF_INET6: 14 + 40 + 32}
"""Ethernet, IP, TCP with timestamps; the MSS that the kernel tells is without the latter."""

MSS_USUAL = 1448


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """A rule as movers know it: networks in CIDR form, () for any address."""

    name: str
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()

    def covers(self, source: str, target: str) -> bool:
        """Whether what `source` sends to `target` falls under it."""
        return _is_in(source, self.sources) and _is_in(target, self.targets)


@dataclass(frozen=True, slots=True)
class Lease:
    """What a mover may send under a rule: `rate_bps` bytes per second (None: no limit, until the
    rule's hours begin) for `lasts_s` seconds, then `floor_bps` until it hears again."""

    number: int
    rate_bps: float | None
    floor_bps: float
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What a mover tells the server of one rule: bytes per second sent since it last told, whether
    links had to wait most of that time, the weights of its links, and the lease it holds."""

    rate_bps: float
    is_limited: bool
    weight: float
    lease: int


def _is_in(address: str, networks: Sequence[str]) -> bool:
    if not networks:
        return True
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return any((mapped or found) in ipaddress.ip_network(item, strict=False) for item in networks)


class Flow:
    """One link's place under one rule. Used by one thread at a time."""

    __slots__ = ("finish", "throttle", "weight")

    def __init__(self, throttle: Throttle, weight: float) -> None:
        self.throttle = throttle
        self.weight = weight
        self.finish = 0.0

    def take(self, count: int) -> None:
        """Return when `count` bytes may go."""
        self.throttle._take(self, count)

    def charge(self, count: int) -> None:
        """Count bytes that go now, whatever the rate."""
        self.throttle._charge(count)

    def close(self) -> None:
        """The link is gone."""
        self.throttle._left(self)


class _Turn:
    """A thread that waits: its place in the order, and how it is woken."""

    __slots__ = ("count", "start", "woken")

    def __init__(self, start: float, count: int) -> None:
        self.start = start
        self.count = count
        self.woken = threading.Event()


class Throttle:
    """One rule in this process. Thread-safe. The rate may change at any time."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        now = clock.monotonic()
        self._leases: dict[str, tuple[Lease, float]] = {}
        """By lender: its last lease, and until when that holds."""
        self._level = 0.0
        self._levelled_at = now
        self._virtual = 0.0
        self._waiting: list[tuple[float, int, _Turn]] = []
        self._numbers = itertools.count()
        self._flows: set[Flow] = set()
        self._sent = 0
        self._busy_s = 0.0
        self._busy_since = 0.0
        self._made_at = now
        self._told: dict[str, tuple[float, int, float]] = {}
        """By lender: when it was told last, and what had been sent and waited by then."""

    def flow(self, weight: float = 1.0) -> Flow:
        """A new flow; among those that send, bandwidth goes by weight."""
        flow = Flow(self, weight)
        with self._lock:
            self._flows.add(flow)
        return flow

    def lend(self, lease: Lease, lender: str = "") -> None:
        """Work with this lease from now on, and with those of other lenders that are not over."""
        with self._lock:
            now = self._clock.monotonic()
            self._levelled(now)
            others = [
                (name, held)
                for name, held in self._leases.items()
                if name != lender and now < held[1]
            ][-LENDERS_MAX:]
            self._leases = {**dict(others), lender: (lease, now + lease.lasts_s)}
            told = {name: self._told[name] for name in self._leases if name in self._told}
            self._told = {lender: (now, self._sent, self._busy_s), **told}
            if self._waiting:
                self._waiting[0][2].woken.set()

    def rate_bps(self) -> float | None:
        """Bytes per second allowed now; None without a limit."""
        with self._lock:
            return self._rate(self._clock.monotonic())

    def demand(self, lender: str = "") -> Demand:
        """What has happened since that lender's last call, or first lease."""
        with self._lock:
            now = self._clock.monotonic()
            if self._waiting:
                self._busy_s += now - self._busy_since
                self._busy_since = now
            told_at, sent, busy_s = self._told.get(lender, (self._made_at, 0, 0.0))
            elapsed_s = max(1e-6, now - told_at)
            held = self._leases.get(lender)
            if held is not None or not lender:
                self._told[lender] = now, self._sent, self._busy_s
            return Demand(
                (self._sent - sent) / elapsed_s,
                (self._busy_s - busy_s) / elapsed_s > 0.5,
                sum(flow.weight for flow in self._flows),
                held[0].number if held is not None else 0,
            )

    def piece_bytes(self) -> int | None:
        """The largest piece to ask for at once; None without a limit."""
        rate = self.rate_bps()
        if rate is None:
            return None
        return int(min(PIECE_MAX, max(PIECE_MIN, rate * PIECE_S)))

    # --- under the lock ----------------------------------------------------------------------

    def _rate(self, now: float) -> float | None:
        live = [lease.rate_bps for lease, until in self._leases.values() if now < until]
        if live:
            return min((rate for rate in live if rate is not None), default=None)
        return min((lease.floor_bps for lease, _ in self._leases.values()), default=None)

    def _levelled(self, now: float) -> float | None:
        """Fill the bucket up to now; the rate."""
        rate = self._rate(now)
        elapsed_s = now - self._levelled_at
        self._levelled_at = now
        if rate is None:
            self._level = 0.0
        else:
            self._level = min(rate * BURST_S, self._level + elapsed_s * rate)
        return rate

    def _take(self, flow: Flow, count: int) -> None:
        with self._lock:
            turn = self._ask(flow, count)
        while True:
            with self._lock:
                delay_s = self._try(turn)
                if delay_s == 0:
                    return
                turn.woken.clear()
            turn.woken.wait(delay_s)

    def _ask(self, flow: Flow, count: int) -> _Turn:
        """Stand in the order."""
        rate = self._rate(self._clock.monotonic()) or 0.0
        weights = sum(item.weight for item in self._flows)
        start = max(self._virtual - rate * ABSENCE_S / max(weights, flow.weight), flow.finish)
        flow.finish = start + count / flow.weight
        turn = _Turn(start, count)
        if not self._waiting:
            self._busy_since = self._clock.monotonic()
        heapq.heappush(self._waiting, (start, next(self._numbers), turn))
        return turn

    def _try(self, turn: _Turn) -> float | None:
        """0 when it is the turn's turn and there is room: it is gone then. Else the seconds to
        wait, None until woken."""
        if self._waiting[0][2] is not turn:
            return None
        now = self._clock.monotonic()
        rate = self._levelled(now)
        if rate is not None and self._level <= -1:
            return -self._level / max(1.0, rate)
        heapq.heappop(self._waiting)
        self._virtual = max(self._virtual, turn.start)
        self._level -= turn.count
        self._sent += turn.count
        if self._waiting:
            self._waiting[0][2].woken.set()
        else:
            self._busy_s += now - self._busy_since
        return 0

    def _charge(self, count: int) -> None:
        with self._lock:
            self._levelled(self._clock.monotonic())
            self._level -= count
            self._sent += count

    def _left(self, flow: Flow) -> None:
        with self._lock:
            self._flows.discard(flow)


def wire_bytes(count: int, mss: int, headers: int, is_tls: bool) -> int:
    """What an interface counts for `count` bytes written at once to a TCP connection."""
    if is_tls:
        count += -(-count // TLS_RECORD) * TLS_OVERHEAD
    return count + -(-count // mss) * headers


class Pace:
    """What one link asks before it writes. Made by `Throttles.pace`; rules may come and go."""

    def __init__(
        self,
        throttles: Throttles,
        ends: tuple[str, str],
        weight: float,
        *,
        is_control: bool = False,
        is_tls: bool = True,
        mss: int = MSS_USUAL,
        headers: int = PACKET_HEADERS[socket.AF_INET],
    ) -> None:
        self._throttles = throttles
        self._ends = ends
        self._weight = 0.0 if is_control else weight  # it asks for no share
        self._is_control = is_control
        self._is_tls = is_tls
        self._mss = mss
        self._headers = headers
        self._generation = -1
        self._flows: tuple[Flow, ...] = ()

    def take(self, wanted: int) -> int:
        """How many of `wanted` bytes may be written now, at least one; waits until they may."""
        if self._generation != self._throttles.generation:
            self._bind()
        if not self._flows:
            return wanted
        pieces = [piece for flow in self._flows if (piece := flow.throttle.piece_bytes())]
        if self._is_control or not pieces:
            for flow in self._flows:
                flow.charge(self._counted(wanted))
            return wanted
        # Whole TLS records and packets where possible: what is left over costs headers of its own.
        count = min(wanted, *pieces)
        for flow in self._flows:
            flow.take(self._counted(count))
        return count

    def close(self) -> None:
        """The link is gone."""
        for flow in self._flows:
            flow.close()
        self._flows = ()
        self._generation = self._throttles.generation

    def _counted(self, count: int) -> int:
        return wire_bytes(count, self._mss, self._headers, self._is_tls)

    def _bind(self) -> None:
        self.close()
        self._flows = tuple(
            throttle.flow(self._weight) for throttle in self._throttles.covering(*self._ends)
        )


class Throttles:
    """All rules of this process. Thread-safe."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rules: dict[str, tuple[RuleSpec, Throttle]] = {}
        self.generation = 0
        """Grows when rules come or go; links then look again which of them cover them."""

    def configure(self, rules: Iterable[RuleSpec]) -> None:
        """These are the rules from now on. A new one has no limit until its first lease."""
        rules = list(rules)
        with self._lock:
            known = self._rules
            if rules == [rule for rule, _ in known.values()]:
                return
            self._rules = {}
            for rule in rules:
                throttle = known[rule.name][1] if rule.name in known else Throttle(self._clock)
                self._rules[rule.name] = (rule, throttle)
            self.generation += 1

    def lend(self, name: str, lease: Lease, lender: str = "") -> None:
        """A lease for the rule of that name; one for a rule that is gone is dropped."""
        with self._lock:
            found = self._rules.get(name)
        if found is not None:
            found[1].lend(lease, lender)

    def demands(self, lender: str = "") -> dict[str, Demand]:
        """What to tell that lender, by rule."""
        with self._lock:
            rules = list(self._rules.items())
        return {name: throttle.demand(lender) for name, (_, throttle) in rules}

    def covering(self, source: str, target: str) -> list[Throttle]:
        """The throttles of all rules for what `source` sends to `target`, in order of name, so
        that flows wait for them in one order."""
        with self._lock:
            rules = sorted(self._rules.items())
        return [throttle for _, (rule, throttle) in rules if rule.covers(source, target)]

    def pace(
        self,
        connection: socket.socket,
        *,
        weight: float = 1.0,
        is_control: bool = False,
        is_tls: bool = True,
    ) -> Pace | None:
        """What the link over this connection asks; None where it is no TCP connection."""
        headers = PACKET_HEADERS.get(connection.family)
        if headers is None:
            return None
        mss = MSS_USUAL
        number = getattr(socket, "TCP_MAXSEG", None)
        if number is not None:
            mss = connection.getsockopt(socket.IPPROTO_TCP, number) or MSS_USUAL
        return Pace(
            self,
            (str(connection.getsockname()[0]), str(connection.getpeername()[0])),
            weight,
            is_control=is_control,
            is_tls=is_tls,
            mss=mss,
            headers=headers,
        )
