"""Lends the traffic rules' limits to the movers that are connected, while sessions run.

Every INTERVAL_S it asks each mover what it sent under each rule, and tells it what it may send from
now on (`traffic.TrafficLedger`); more often while shares still change. A mover that connects is
told the rules before anything else. Without rules, or while no session runs, nothing happens here:
the leases run out then, and the next session begins with new ones.

The server's own control links are counted too: it is one of those who borrow.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from datetime import tzinfo
from typing import Any

import msgspec

from standby.clock import SYSTEM_CLOCK, Clock, new_token
from standby.server.service_mover import ServiceMover
from standby.server.traffic import FLOOR_SHARE, LASTS_S, TrafficLedger, TrafficRule
from standby.wire.throttle import Demand, Lease, Throttles

INTERVAL_S = LASTS_S / 5
QUICK_S = 0.5
"""The interval while shares change: a rate moves from one mover to another in two or three steps,
for what one gives back is lent again only when it has said so."""

SETTLED = 0.1
"""Shares that change by less are settled."""

ANSWER_S = 2.0
"""How long a mover is waited for; one that answers later is asked again then."""

_NOTHING = Demand(0.0, False, 0.0, 0)
_SERVER = ""
"""This server's name among those who borrow."""


class TrafficServer:
    """The traffic rules of one backup server. Thread-safe. Close it."""

    def __init__(
        self,
        rules: Mapping[str, TrafficRule],
        zone: tzinfo,
        movers: Callable[[], Iterable[ServiceMover]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`movers` are all that may send, also those that no session of this process uses: where
        another process lends the same limit, a mover obeys the lower lease. Times of rules are
        those of `zone`."""
        self._rules = dict(rules)
        self._zone = zone
        self._movers = movers
        self._clock = clock
        self._lender = new_token(8)
        self._specs = [msgspec.to_builtins(rule.spec) for rule in self._rules.values()]
        self.throttles = Throttles(clock)
        """Of this process: its control links."""
        self.throttles.configure(rule.spec for rule in self._rules.values())
        self._lending = threading.Lock()
        self._ledgers = {name: TrafficLedger() for name in self._rules}
        self._rates: dict[tuple[str, str], float | None] = {}
        self._late: dict[str, Future[Any]] = {}
        self._others: dict[str, list[str]] = {}
        self._changed = threading.Condition()
        self._sessions = 0
        self._has_news = False
        self._is_closed = False
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def session(self) -> Iterator[None]:
        """Rates are lent until the block ends."""
        if not self._rules:
            yield
            return
        with self._changed:
            self._sessions += 1
            self._has_news = True
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._sessions -= 1

    def greet(self, mover: str, ask: Callable[..., Any]) -> None:
        """What a mover is told on a new link before anything else, also that there are no rules:
        the last server may have had some."""
        leases, _ = self._lent(mover, {})
        told = ask("traffic_rules", **self._told(leases))
        self._others[mover] = list(told["others"]) if told else []
        with self._changed:
            self._has_news = True
            self._changed.notify_all()

    def others_at(self, mover: str) -> list[str]:
        """The rules that the mover obeys because another server told it of them, and that this one
        does not have, as of when it was connected."""
        return self._others.get(mover, [])

    def lent_bps(self) -> dict[str, dict[str, float]]:
        """By rule, what each mover may be sending at most now."""
        now = self._clock.monotonic()
        with self._lending:
            return {name: ledger.lent_bps(now) for name, ledger in self._ledgers.items()}

    def close(self) -> None:
        """Lend no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(timeout=10)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._sessions > 0 or self._is_closed)
                if self._is_closed:
                    return
                self._has_news = False
            is_settled = self.lend()
            with self._changed:
                self._changed.wait_for(
                    lambda: self._has_news or self._is_closed,
                    INTERVAL_S if is_settled else QUICK_S,
                )

    def lend(self) -> bool:
        """Ask every connected mover and lend to it, once; whether nobody's rate changed much."""
        asked = {}
        for mover in self._movers():
            late = self._late.pop(mover.name, None)
            if late is not None and not late.done():
                self._late[mover.name] = late
            elif (future := mover.start_now("traffic_demands", lender=self._lender)) is not None:
                asked[mover] = future
        wait(asked.values(), ANSWER_S)
        is_settled = True
        for mover, future in asked.items():
            if not future.done():
                self._late[mover.name] = future
            elif future.exception() is None:
                demands = msgspec.convert(future.result(), dict[str, Demand])
                leases, is_same = self._lent(mover.name, demands)
                is_settled = is_settled and is_same
                mover.tell("traffic_rules", **self._told(leases))
        leases, is_same = self._lent(_SERVER, self.throttles.demands())
        for name, lease in leases.items():
            self.throttles.lend(name, lease)
        return is_settled and is_same

    def _told(self, leases: dict[str, Lease]) -> dict[str, Any]:
        """The arguments of `traffic_rules`."""
        told = msgspec.to_builtins(leases)
        return {"rules": self._specs, "leases": told, "lender": self._lender}

    def _lent(self, mover: str, demands: Mapping[str, Demand]) -> tuple[dict[str, Lease], bool]:
        """The mover's next leases, and whether they are about those that it had."""
        leases = {}
        is_settled = True
        at, now = self._clock.now(), self._clock.monotonic()
        with self._lending:
            for name, rule in self._rules.items():
                lease = self._ledgers[name].lend(
                    mover,
                    demands.get(name, _NOTHING),
                    rule.limit_at(at, self._zone),
                    now,
                    floor_bps=rule.limit_bps * FLOOR_SHARE,
                    lasts_s=rule.opens_in_s(at, self._zone),
                    is_told=name in demands,
                )
                before = self._rates.get((name, mover))
                self._rates[(name, mover)] = lease.rate_bps
                is_settled = is_settled and _is_about(before, lease.rate_bps)
                leases[name] = lease
        return leases, is_settled


def _is_about(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return before == after
    return abs(after - before) <= SETTLED * max(before, after)
