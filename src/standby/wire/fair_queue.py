"""A limit within one process: who of those that send waits for whom, and how long.

Order: start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996). A flow asks for one piece at a
time, and in a deficit round robin a flow without a second piece at hand loses its deficit: weights
would not hold. A flow that asks for nothing takes nothing, and saves no more up than ABSENCE_S.
"""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable
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


@dataclass(frozen=True, slots=True)
class Lease:
    """What a mover may send under a rule: `rate_bps` bytes per second (None: no limit, until the
    rule's hours begin) for `lasts_s` seconds, then `floor_bps` until it hears again. One that
    `is_answer` to a Demand lasts from when that was told: so the lender knows when it is over,
    however long it travels."""

    number: int
    rate_bps: float | None
    floor_bps: float
    lasts_s: float
    is_answer: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What a mover tells the server of one rule: bytes per second sent since it last told, whether
    links had to wait most of that time, the weights of its links, and the lease it holds."""

    rate_bps: float
    is_limited: bool
    weight: float
    lease: int


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

    def __init__(
        self, clock: Clock = SYSTEM_CLOCK, is_over: Callable[[], bool] = lambda: False
    ) -> None:
        """Where no lease counts, the floor holds, unless the rule `is_over` then."""
        self._clock = clock
        self._is_over = is_over
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
            asked_at = self._told[lender][0] if lease.is_answer and lender in self._told else now
            self._leases = {**dict(others), lender: (lease, asked_at + lease.lasts_s)}
            told = {name: self._told[name] for name in self._leases if name in self._told}
            self._told = {lender: (now, self._sent, self._busy_s), **told}
            if self._waiting:
                self._waiting[0][2].woken.set()

    def is_lent_by(self, lender: str) -> bool:
        """Whether a lease of that lender counts."""
        with self._lock:
            held = self._leases.get(lender)
            return held is not None and self._clock.monotonic() < held[1]

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
        if self._is_over():
            return None
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
