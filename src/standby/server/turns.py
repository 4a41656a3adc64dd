"""Whose turn it is, among all that wait for slots: what `resources.Resources` does under its lock.

Nothing here locks or calls back: what ended stands in `_ended`.
"""

from __future__ import annotations

from collections.abc import Callable

from standby.clock import Clock
from standby.errors import NoProxy, StandbyError
from standby.server.tickets import Grant, TaskRequest, Ticket
from standby.server.waiting import Flow, JobTurns, Lane, LaneKey, Slots

BOUNCES_MAX = 8
"""A lane passed over this often gets its slots kept."""


class Turns:
    """All slots, all that wait for them, and who gets them."""

    def __init__(self, clock: Clock, give_back: Callable[[Grant], None]) -> None:
        """`give_back` takes a grant that is released."""
        self._give_back = give_back
        self._clock = clock
        self._server = Slots("server", "", None)
        self._hosts: dict[str, Slots] = {}
        self._repositories: dict[str, Slots] = {}
        self._proxies: dict[str, Slots] = {}
        self._configured: set[str] = set()
        self._reported: dict[str, tuple[str, bool]] = {}
        self._jobs: dict[str, JobTurns] = {}
        self._sessions: dict[tuple[str, str], Slots] = {}
        self._lanes: dict[LaneKey, Lane] = {}
        self._grants: dict[str, dict[Grant, None]] = {}
        self._ready = Slots("ready", "", None)
        self._open: dict[Slots, None] = {}
        self._elder: Lane | None = None
        self._kept: tuple[Slots, ...] = ()
        self._ended: list[Ticket] = []
        self.waiting = 0
        self.running = 0
        self.granted = 0
        self.waited_s = 0.0
        self.attempts = 0
        """How often a lane was looked at: what the order costs, for tests and metrics."""

    def _proxy(self, name: str) -> Slots:
        slots = self._proxies.get(name)
        if slots is None:
            slots = self._proxies[name] = Slots("proxy", name, 0)
            self._judge(name)
        return slots

    def _judge(self, name: str) -> None:
        """Put together what the configuration and the reports say of a proxy."""
        slots = self._proxies.get(name)
        if slots is None:
            return
        slots.problem, slots.is_gone = self._reported.get(name, ("", False))
        if name not in self._configured:
            slots.problem, slots.is_gone = "not in the configuration", True
        self._freed(slots)
        self._keep_for(self._elder)

    def _limit(self, slots: Slots, limit: int | None) -> None:
        slots.limit = limit
        self._freed(slots)
        self._keep_for(self._elder)

    def _flow(self, request: TaskRequest, now: float) -> Flow:
        """Where the request waits, made if need be; its job's rank and limits as it says."""
        job = self._jobs.setdefault(request.job, JobTurns(request.job))
        names = (request.job, request.session)
        session = self._sessions.setdefault(names, Slots("session", request.session, None))
        job.slots.limit = request.job_max_tasks or None
        session.limit = request.session_max_tasks or None
        is_better = job.rank(request.priority, request.weight)
        for flow in job.flows:  # a few: lanes and sessions of one job
            if flow.may_go and (is_better or flow.stamp < 0):
                self._consider(flow)
        if not job.flows:
            job.begins_waiting(now)
        lane = self._lane(request)
        if names not in lane.flows:
            lane.flows[names] = Flow(lane, job, session)
            job.flows.add(lane.flows[names])
        return lane.flows[names]

    def _lane(self, request: TaskRequest) -> Lane:
        sources, targets = request.source_proxies, request.target_proxies
        key = (
            frozenset((request.source_host, request.target_host)),
            request.repository,
            None if sources is None else tuple(sorted(set(sources))),
            None if targets is None else tuple(sorted(set(targets))),
        )
        lane = self._lanes.get(key)
        if lane is None:
            fixed = [self._server]
            for name in sorted(key[0] - {""}):
                fixed.append(self._hosts.setdefault(name, Slots("host", name, None)))
            if request.repository:
                empty = Slots("repository", request.repository, None)
                fixed.append(self._repositories.setdefault(request.repository, empty))
            lane = self._lanes[key] = Lane(
                key,
                tuple(fixed),
                None if key[2] is None else tuple(self._proxy(name) for name in key[2]),
                None if key[3] is None else tuple(self._proxy(name) for name in key[3]),
            )
        return lane

    def _consider(self, flow: Flow) -> None:
        """The flow may go, or may go earlier than it stands."""
        lane = flow.lane
        lane.push(flow)
        if not lane.parked_at:
            self._make_ready(lane)
        elif lane.best() is flow:
            lane.park(lane.parked_at, len(self._lanes))

    def _make_ready(self, lane: Lane) -> None:
        lane.park((self._ready,), len(self._lanes))
        self._open[self._ready] = None

    def _freed(self, slots: Slots) -> None:
        if slots.parked and slots.has_room():
            self._open[slots] = None

    def _give_out(self) -> None:
        """Grants for all that can begin, in order. What cannot is parked."""
        while True:
            elder = self._elder
            if elder is not None and elder.best() is None:
                self._keep_for(None)
            elif elder is not None and not elder.obstacle(is_elder=True):
                self._grant(elder)
                continue
            lane = self._next_lane()
            if lane is None:
                return
            self.attempts += 1
            obstacle = lane.obstacle(is_elder=False)
            if not obstacle:
                self._grant(lane)
                continue
            if lane.parked_at != (self._ready,):
                lane.bounces += 1
                if lane.bounces >= BOUNCES_MAX and self._elder is None:
                    self._keep_for(lane)
            lane.park(obstacle, len(self._lanes))

    def _next_lane(self) -> Lane | None:
        """The best of the lanes that stand where there is room."""
        best: tuple[tuple[float, int], int] | None = None
        chosen = None
        for slots in list(self._open):
            found = slots.parked.best() if slots.has_room() else None
            if found is None:
                del self._open[slots]
                continue
            key, lane = found
            if best is None or (key, lane.number) < best:
                best, chosen = (key, lane.number), lane
        return chosen

    def _grant(self, lane: Lane) -> None:
        """Give the lane's next task its slots."""
        flow = lane.best()
        assert flow is not None
        ticket = next(iter(flow.tickets))
        source, target = lane.least_busy(is_elder=lane is self._elder)
        proxies = dict.fromkeys(proxy for proxy in (source, target) if proxy is not None)
        held = (*lane.fixed, flow.job.slots, flow.session, *proxies)
        request = ticket.request
        for slots in held:
            slots.used += 1
            slots.bytes += request.size_bytes
        now = self._clock.monotonic()
        waited_s = now - ticket.asked_at
        grant = Grant(self._give_back, request, held, source, target, waited_s)
        self.waited_s += waited_s
        ticket.grant = grant
        self._grants.setdefault(request.session, {})[grant] = None
        self.running += 1
        self.granted += 1
        flow.job.served(now)
        lane.bounces = 0
        if lane is self._elder:
            self._keep_for(None)
        self._end(ticket, None)
        if lane.flows:
            self._make_ready(lane)

    def _keep_for(self, lane: Lane | None) -> None:
        """Keep one slot of everything that `lane` needs for it, and no other; None: keep none."""
        if lane is None and self._elder is None:
            return
        for slots in self._kept:
            slots.reserved -= 1
            self._freed(slots)
        self._elder, self._kept = None, ()
        if lane is None:
            return
        needed = dict.fromkeys(lane.fixed)
        for _, proxies in lane.sides():
            alive = [item for item in proxies if not item.problem and item.limit != 0]
            if not alive:
                return
            needed[min(alive, key=Slots.load)] = None
        if all(slots.limit != 0 for slots in needed):
            self._elder, self._kept = lane, tuple(needed)
            for slots in needed:
                slots.reserved += 1

    def _end(self, ticket: Ticket, error: StandbyError | None) -> None:
        """The ticket leaves its flow, with the grant it has or with an error."""
        flow = ticket._flow
        assert flow is not None
        del flow.tickets[ticket]
        ticket._flow = None
        ticket.error = error
        self.waiting -= 1
        self._ended.append(ticket)
        if flow.tickets:
            return
        lane = flow.lane
        del lane.flows[(flow.job.name, flow.session.name)]
        flow.job.flows.discard(flow)
        self._forget(flow.job, flow.session)
        if not lane.flows:
            lane.leave()
            del self._lanes[lane.key]
            if lane is self._elder:
                self._keep_for(None)

    def _forget(self, job: JobTurns, session: Slots) -> None:
        """Drop what neither waits nor runs."""
        if not session.used and not any(flow.session is session for flow in job.flows):
            self._sessions.pop((job.name, session.name), None)
        if not job.slots.used and not job.flows:
            self._jobs.pop(job.name, None)

    def _refuse_the_hopeless(self) -> None:
        for lane in list(self._lanes.values()):
            side = hopeless_side(lane)
            if side:
                for ticket in list(lane.tickets()):
                    self._end(ticket, no_proxy(ticket, lane, side))


def hopeless_side(lane: Lane) -> str:
    """The side on which there is nothing to wait for; '' when both have hope."""
    for side, proxies in lane.sides():
        if all(item.is_gone for item in proxies):
            return side
    return ""


def no_proxy(ticket: Ticket, lane: Lane, side: str) -> NoProxy:
    """What a task fails with whose lane has nothing to wait for on that side."""
    request = ticket.request
    gone = {
        item.name: item.problem
        for name, proxies in lane.sides()
        if name == side
        for item in proxies
    }
    refused = {name: reason for place, name, reason in request.refused if place == side}
    reasons = tuple(f"{name}: {reason}" for name, reason in sorted({**refused, **gone}.items()))
    return NoProxy(request.machine, request.place, side, reasons)
