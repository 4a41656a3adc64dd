"""Who may begin a disk task now: slots of proxies, hosts, repositories, jobs, sessions, the server.

A task takes one slot of everything it needs at once, or waits and holds nothing: so tasks cannot
block each other in a ring. Nobody polls: whoever gives slots back hands them to those whose turn
it is (`turns`, in the order of `waiting`). Each task says which proxies could do it (`proxies`
finds them); it gets the least busy one of each side.

    resources = Resources(clock)
    resources.configure(Capacities(server=4, proxies={"px1": 2}))
    with resources.taken(request) as grant:
        ...  # grant.source_proxy, grant.target_proxy

Starvation: ageing bounds what higher priorities may overtake. A task that needs several scarce
things could still be passed over for ever by tasks that need one of them each; so a lane woken for
nothing BOUNCES_MAX times has one slot of each thing it needs kept for it, one lane at a time.

Cost per task: some heap steps; not the number of waiting tasks. What a release can touch beyond
that is lanes (kinds of needs, not jobs) that stand at the freed slots but lack others.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import SessionStopped, StandbyError
from standby.server.tickets import Capacities, Grant, TaskRequest, Ticket
from standby.server.turns import Turns, hopeless_side, no_proxy
from standby.server.usage import Usage, job_uses, slot_uses
from standby.server.waiting import Slots

__all__ = ["Capacities", "Grant", "Resources", "TaskRequest", "Ticket"]


class Resources(Turns):
    """The one who gives out slots. Thread-safe; callbacks (`on_end`) run outside of the lock, in
    the thread whose call made them due, and must not raise."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(clock, self._release)
        self._lock = threading.Lock()
        self._local = threading.local()

    # --- what there is -----------------------------------------------------------------------

    def configure(self, capacities: Capacities) -> None:
        """Take over limits, new proxies and gone ones. Running tasks stay; who waits for nothing
        but proxies that are gone gets NoProxy."""
        with self._changes():
            self._limit(self._server, capacities.server)
            for kind, known, limits in (
                ("host", self._hosts, capacities.hosts),
                ("repository", self._repositories, capacities.repositories),
            ):
                for name in {*known, *limits}:
                    slots = known.setdefault(name, Slots(kind, name, None))
                    self._limit(slots, limits.get(name))
            for name in {*self._proxies, *capacities.proxies}:
                self._limit(self._proxy(name), capacities.proxies.get(name, 0))
            self._configured = set(capacities.proxies)
            for name in self._proxies:
                self._judge(name)
            self._refuse_the_hopeless()

    def proxy_up(self, name: str) -> None:
        """The proxy takes tasks (as it does until something else is said)."""
        self._report(name, "", False)

    def proxy_paused(self, name: str, reason: str) -> None:
        """The proxy takes no task now, and is waited for: a lost connection, high latency."""
        self._report(name, reason, False)

    def proxy_down(self, name: str, reason: str) -> None:
        """The proxy takes no task, and is not waited for."""
        self._report(name, reason, True)

    def _report(self, name: str, reason: str, is_gone: bool) -> None:
        with self._changes():
            self._reported[name] = (reason, is_gone)
            self._judge(name)
            if is_gone:
                self._refuse_the_hopeless()

    def usage(self) -> Usage:
        """What is used, and what waits for it, now. Costs as much as there are jobs and things."""
        with self._lock:
            things = (
                self._server,
                *self._hosts.values(),
                *self._repositories.values(),
                *self._proxies.values(),
            )
            return Usage(
                slot_uses(things, self._lanes.values()),
                job_uses(self._jobs.values(), self._clock.monotonic()),
                self.running,
                self.waiting,
                self.granted,
                self.waited_s,
            )

    # --- asking ------------------------------------------------------------------------------

    def request(
        self, request: TaskRequest, on_end: Callable[[Ticket], None] | None = None
    ) -> Ticket:
        """Stand in the queue. `on_end` is called once, with the ticket, as soon as it has a grant
        or an error, which may be before this returns."""
        with self._changes():
            now = self._clock.monotonic()
            ticket = Ticket(self, request, now, on_end)
            flow = self._flow(request, now)
            flow.tickets[ticket] = None
            ticket._flow = flow
            self.waiting += 1
            hopeless = hopeless_side(flow.lane)
            if hopeless:
                self._end(ticket, no_proxy(ticket, flow.lane, hopeless))
            elif flow.stamp < 0 and flow.may_go:
                self._consider(flow)
        return ticket

    @contextlib.contextmanager
    def taken(self, request: TaskRequest, timeout_s: float | None = None) -> Iterator[Grant]:
        """Wait for the slots and hold them until the block ends, however it ends. Raises what
        `Ticket.wait` does."""
        ticket = self.request(request)
        try:
            yield ticket.wait(timeout_s)
        finally:
            ticket.cancel()

    def cancel_session(self, session: str, machine: str = "") -> int:
        """Cancel what waits for the session (SessionStopped), or for one VM of it; how many that
        were."""
        with self._changes():
            waiting = [
                ticket
                for lane in self._lanes.values()
                for flow in lane.flows.values()
                if flow.session.name == session
                for ticket in flow.tickets
                if machine in ("", ticket.request.machine)
            ]
            for ticket in waiting:
                self._end(ticket, SessionStopped(ticket.request.job, ticket.request.machine))
        return len(waiting)

    def end_session(self, session: str) -> int:
        """Cancel what waits and take back what is still held; of how many
        tasks.
        For the end of a session whose tasks may have died on the way."""
        self.cancel_session(session)
        with self._lock:
            held = list(self._grants.get(session, ()))
        for grant in held:
            grant.release()
        return len(held)

    # --- tickets and grants ------------------------------------------------------------------

    @contextlib.contextmanager
    def _changes(self) -> Iterator[None]:
        """Hold the lock, then give out what can be given out, then tell those concerned."""
        with self._lock:
            yield
            self._give_out()
            ended, self._ended = self._ended, []
            for ticket in ended:
                if ticket._event is not None:
                    ticket._event.set()
        self._tell([ticket for ticket in ended if ticket.on_end is not None])

    def _tell(self, ended: list[Ticket]) -> None:
        """Call back, one after another, also where a callback makes the next one due."""
        queue: deque[Ticket] | None = getattr(self._local, "queue", None)
        if queue is not None:
            queue.extend(ended)
            return
        queue = self._local.queue = deque(ended)
        try:
            while queue:
                ticket = queue.popleft()
                assert ticket.on_end is not None
                ticket.on_end(ticket)
        finally:
            self._local.queue = None

    def _event_of(self, ticket: Ticket) -> threading.Event | None:
        """What a thread can wait for; None when the ticket has ended."""
        with self._lock:
            if not ticket.is_waiting:
                return None
            if ticket._event is None:
                ticket._event = threading.Event()
            return ticket._event

    def _give_up(self, ticket: Ticket, error: StandbyError) -> None:
        with self._changes():
            if ticket.is_waiting:
                self._end(ticket, error)

    def _release(self, grant: Grant) -> None:
        with self._changes():
            held, grant._held = grant._held, None
            if held is None:
                return
            self.running -= 1
            request = grant.request
            for slots in held:
                slots.used -= 1
                slots.bytes -= request.size_bytes
                self._freed(slots)
            grants = self._grants[request.session]
            del grants[grant]
            if not grants:
                del self._grants[request.session]
            job = self._jobs[request.job]
            for flow in job.flows:
                if flow.stamp < 0 and flow.may_go:
                    self._consider(flow)
            self._forget(job, self._sessions[(request.job, request.session)])
