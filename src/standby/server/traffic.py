"""A traffic rule's limit, lent to movers in parts: who may send how fast. Pure but for its memory.

Each mover tells every few seconds how much it sends under a rule and whether it was held back
(`Demand`), and gets a `Lease`: a rate until a deadline, which both count from what the mover told
(the idea of Gray and Cheriton's leases, SOSP 1989). The parts never add up to more than the limit,
also while answers are lost: what was lent counts until the mover says that it holds a later lease,
or until the lease ran out; then it counts as the floor that the mover falls to by itself. A mover
that has not been heard since then wants nothing more: the others share the limit.

So what a lost mover was lent is the others' LASTS_S after it was heard last. Not sooner: a link
that ended, also one that is refused from then on, does not say that its mover has ended; one that
is cut off from the server goes on sending to the target by its lease. Nor is a lease any shorter: a
server that starts again, or takes over, finds its movers at their rates, not at their floors.

Shares are max-min fair by weight: who wants less than its share gets what it wants, the others
divide the rest by the weights of their links. What nobody wants is divided too, so that a link
that begins finds some rate at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo

from standby.server.schedule import Schedule, Window, permitted_from
from standby.wire.throttle import Demand, Lease, RuleSpec

LASTS_S = 15.0
"""How long a lease lasts; movers are asked every LASTS_S / 5, so that some lost answers do no harm,
and as long as another server takes to become the active one (`store.lease.LEASE_S`)."""

HEADROOM = 1.25
"""A mover that was not held back is lent this much more than it sent, to grow into."""

FLOOR_SHARE = 0.005
"""Of the limit, per mover: what it falls to by itself, and what one gets while all is lent out. Ten
movers that lost their server exceed the limit by 5 % at most."""


@dataclass(frozen=True, slots=True)
class TrafficRule:
    """A [traffic.NAME] table. `limit_bps` bytes per second for what `sources` send to `targets`
    (CIDR networks, () any) in `windows`; without windows always."""

    name: str
    limit_bps: int
    sources: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    windows: tuple[Window, ...] = ()

    @property
    def spec(self) -> RuleSpec:
        """What movers are told of it."""
        return RuleSpec(self.name, self.sources, self.targets)

    def limit_at(self, at: datetime, zone: tzinfo) -> int | None:
        """Bytes per second at that moment, None outside of its windows."""
        return self.limit_bps if self.opens_in_s(at, zone) == 0 else None

    def opens_in_s(self, at: datetime, zone: tzinfo) -> float:
        """Seconds until its windows open, 0 within."""
        return (permitted_from(Schedule(windows=self.windows), at, zone) - at).total_seconds()


def fair_shares(limit_bps: float, demands: Mapping[str, Demand]) -> dict[str, float]:
    """The limit divided among the movers, weighted max-min fair; all of it is given out."""
    wants = {
        name: float("inf") if demand.is_limited else demand.rate_bps * HEADROOM
        for name, demand in demands.items()
    }
    # One without data links has no weight: only control travels, which does not ask.
    weights = {
        name: demand.weight if demand.weight > 1e-3 else 1.0 for name, demand in demands.items()
    }
    shares: dict[str, float] = {}
    left = limit_bps
    # By what each wants per weight: once one gets less than it wants, so do all that follow.
    order = sorted(demands, key=lambda name: (wants[name] / weights[name], name))
    weight_left = sum(weights.values())
    for name in order:
        shares[name] = min(wants[name], left * weights[name] / weight_left)
        left -= shares[name]
        weight_left -= weights[name]
    total = sum(weights.values())
    return {name: share + max(0.0, left) * weights[name] / total for name, share in shares.items()}


@dataclass(slots=True)
class _Borrower:
    """A mover under one rule: its last demand, and the leases it may be working with."""

    demand: Demand
    heard_at: float = 0.0
    leases: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Number: (rate, until when it may count)."""
    floor_bps: float = 0.0

    def lent(self, now: float) -> float:
        """The most it may be sending."""
        live = [rate for rate, until in self.leases.values() if now < until]
        return max([self.floor_bps, *live])

    def is_heard(self, now: float, lasts_s: float) -> bool:
        """Whether its demand counts: it told of it since a lease of then ran out."""
        return now < self.heard_at + lasts_s or any(
            now < until for _, until in self.leases.values()
        )


class TrafficLedger:
    """What is lent of one rule. `lasts_s` as LASTS_S. Not thread-safe: one thread lends."""

    def __init__(self, lasts_s: float = LASTS_S) -> None:
        self._lasts_s = lasts_s
        self._borrowers: dict[str, _Borrower] = {}
        self._number = 0

    def lend(
        self,
        mover: str,
        demand: Demand,
        limit_bps: float | None,
        now: float,
        *,
        floor_bps: float = 0.0,
        lasts_s: float = 0.0,
        is_told: bool = False,
    ) -> Lease:
        """The mover's next lease. `demand.lease` is the one it holds: those before it are over.
        `is_told`: the mover has just told of that demand. `now` is monotonic; `limit_bps` None: no
        limit at this time, which lasts `lasts_s` more, and `floor_bps` after that: a mover that
        lost its server does not stay without a limit."""
        borrower = self._borrowers.setdefault(mover, _Borrower(demand))
        borrower.demand, borrower.heard_at = demand, now
        borrower.leases = {
            number: lease
            for number, lease in borrower.leases.items()
            if number >= demand.lease and now < lease[1]
        }
        if is_told and demand.lease in borrower.leases:  # it has arrived, at the latest now
            rate_bps, until = borrower.leases[demand.lease]
            borrower.leases[demand.lease] = (rate_bps, min(until, now + self._lasts_s))
        self._number += 1
        if limit_bps is None:
            borrower.leases.clear()
            borrower.floor_bps = floor_bps
            return Lease(self._number, None, floor_bps, lasts_s or self._lasts_s)
        floor_bps = limit_bps * FLOOR_SHARE
        demands = {
            name: item.demand
            for name, item in self._borrowers.items()
            if item.is_heard(now, self._lasts_s)
        }
        others = sum(item.lent(now) for name, item in self._borrowers.items() if name != mover)
        share = fair_shares(limit_bps, demands)[mover]
        rate_bps = max(floor_bps, min(share, limit_bps - others))
        borrower.floor_bps = floor_bps
        # One that answers nothing lasts from its arrival: a second lease time for its way.
        until = now + (self._lasts_s if is_told else 2 * self._lasts_s)
        borrower.leases[self._number] = (rate_bps, until)
        return Lease(self._number, rate_bps, floor_bps, self._lasts_s, is_told)

    def lent_bps(self, now: float) -> dict[str, float]:
        """What each mover may be sending at most, for metrics."""
        return {name: item.lent(now) for name, item in self._borrowers.items()}
