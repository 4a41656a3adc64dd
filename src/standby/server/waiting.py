"""Who waits for slots, and in which order: jobs in turns, in lanes of equal needs.

Tasks that need the same hosts, repository and proxies stand in one *lane*: whether the next of
them can begin is one question, however many they are. In a lane each job has a *flow* of its
tasks, oldest first. A lane that cannot go on is parked at the slots that are full, and is looked
at again when one of those becomes free: a release costs the same whether ten or ten thousand
tasks wait.

The order is a number per job that stands still while the job waits, so heaps can hold it:

    key = time of the job's last turn - priority * AGE_STEP_S

Least recently served first is a round robin; `weight` tasks make a turn. One step of priority
overtakes what has waited up to AGE_STEP_S longer, and no more: that is the ageing, and a job of
priority p behind ever new tasks of priority q > p has its turn after (q - p) * AGE_STEP_S.

Nothing here locks; `resources.Resources` does.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from standby.server.tickets import Ticket

AGE_STEP_S = 300.0
"""Seconds of waiting that weigh as much as one step of priority."""

HEAP_SLACK = 64
"""Heaps are cleared of dead entries when they hold four times what lives, and more than this."""

Key = tuple[float, int]
LaneKey = tuple[frozenset[str], str, tuple[str, ...] | None, tuple[str, ...] | None]
"""What the tasks of a lane need: hosts, repository, source proxies, target proxies."""

_numbers = itertools.count()


class Slots:
    """The slots of one thing: a proxy, a host, a repository, a job, a session, the server.

    `limit` None means any number. `used` may exceed a limit that was lowered. `reserved` slots are
    kept for the lane that was passed over too often. `problem` is why a proxy takes no task now;
    `is_gone` that there is no use in waiting for it.
    """

    def __init__(self, kind: str, name: str, limit: int | None) -> None:
        self.kind = kind
        self.name = name
        self.limit = limit
        self.used = 0
        self.reserved = 0
        self.bytes = 0
        self.problem = ""
        self.is_gone = False
        self.parked = LaneHeap()

    def has_room(self, *, for_reserved: bool = False) -> bool:
        """Whether a task may take a slot; `for_reserved`: the one that slots are kept for."""
        if self.problem:
            return False
        taken = self.used if for_reserved else self.used + self.reserved
        return self.limit is None or taken < self.limit

    def load(self, extra: int = 0) -> tuple[float, int, str]:
        """How busy it is, to be compared: share of the slots in use, bytes in flight, name."""
        return ((self.used + extra) / max(1, self.limit or 1), self.bytes, self.name)


class LaneHeap:
    """Lanes by the key of their best flow. Keys that grew are put right when they come up, those
    that fell are pushed again; what is of no use any more is dropped then too."""

    def __init__(self) -> None:
        self._entries: list[tuple[Key, int, int, Lane]] = []

    def __bool__(self) -> bool:
        return bool(self._entries)

    def push(self, lane: Lane, key: Key, lanes_alive: int) -> None:
        """Add the lane as it stands now."""
        if len(self._entries) > HEAP_SLACK + 4 * lanes_alive:
            self._entries = [entry for entry in self._entries if entry[2] == entry[3].stamp]
            heapq.heapify(self._entries)
        heapq.heappush(self._entries, (key, lane.number, lane.stamp, lane))

    def best(self) -> tuple[Key, Lane] | None:
        """The lane whose turn it is, left where it is."""
        entries = self._entries
        while entries:
            key, number, stamp, lane = entries[0]
            if stamp != lane.stamp:
                heapq.heappop(entries)
                continue
            flow = lane.best()
            if flow is None:
                lane.leave()
                heapq.heappop(entries)
            elif flow.job.key != key:
                heapq.heapreplace(entries, (flow.job.key, number, stamp, lane))
            else:
                return key, lane
        return None


class JobTurns:
    """A job's place in the order, and its slots."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.priority = 0
        self.weight = 1
        self.slots = Slots("job", name, None)
        self.flows: set[Flow] = set()
        self._turn_at = 0.0
        self._sequence = 0
        self._credit = 1
        self.key: Key = (0.0, 0)

    def begins_waiting(self, now: float) -> None:
        """Nothing of it waited until now: it stands behind those that do."""
        self._end_turn(now)

    def served(self, now: float) -> None:
        """One of its tasks got its slots."""
        self._credit -= 1
        if self._credit <= 0:
            self._end_turn(now)

    def rank(self, priority: int, weight: int) -> bool:
        """Take over what the newest request says; whether the key fell."""
        is_better = priority > self.priority
        self.priority, self.weight = priority, max(1, weight)
        self._set_key()
        return is_better

    def _end_turn(self, now: float) -> None:
        self._turn_at, self._sequence, self._credit = now, next(_numbers), self.weight
        self._set_key()

    def _set_key(self) -> None:
        self.key = (self._turn_at - self.priority * AGE_STEP_S, self._sequence)


class Flow:
    """The waiting tasks of one session of a job in one lane, oldest first."""

    __slots__ = ("job", "lane", "number", "session", "stamp", "tickets")

    def __init__(self, lane: Lane, job: JobTurns, session: Slots) -> None:
        self.lane = lane
        self.job = job
        self.session = session
        self.number = next(_numbers)
        self.stamp = -1
        """Of its entry in the lane's heap; -1 when it has none."""
        self.tickets: OrderedDict[Ticket, None] = OrderedDict()

    @property
    def may_go(self) -> bool:
        """Whether neither its job nor its session holds it back."""
        return bool(self.tickets) and self.job.slots.has_room() and self.session.has_room()


class Lane:
    """All waiting tasks of equal needs. `fixed`: one slot of each; `sources` and `targets`: one
    slot of one of them, None where the task has no proxy on that side."""

    def __init__(
        self,
        key: LaneKey,
        fixed: tuple[Slots, ...],
        sources: tuple[Slots, ...] | None,
        targets: tuple[Slots, ...] | None,
    ) -> None:
        self.key = key
        self.number = next(_numbers)
        self.fixed = fixed
        self.sources = sources
        self.targets = targets
        self.flows: dict[tuple[str, str], Flow] = {}
        self.stamp = 0
        """Grows whenever its entries in lane heaps lose their meaning."""
        self.parked_at: tuple[Slots, ...] = ()
        """Where its entries are; () when it has none."""
        self.bounces = 0
        """How often it was woken for nothing since one of its tasks began."""
        self._entries: list[tuple[Key, int, int, Flow]] = []
        self._stamps = itertools.count()

    def push(self, flow: Flow) -> None:
        """Have the flow considered, with the key it has now."""
        if len(self._entries) > HEAP_SLACK + 4 * len(self.flows):
            self._entries = [entry for entry in self._entries if entry[2] == entry[3].stamp]
            heapq.heapify(self._entries)
        flow.stamp = next(self._stamps)
        heapq.heappush(self._entries, (flow.job.key, flow.number, flow.stamp, flow))

    def best(self) -> Flow | None:
        """The flow whose turn it is; those that may not go lose their entry."""
        entries = self._entries
        while entries:
            key, number, stamp, flow = entries[0]
            if stamp != flow.stamp:
                heapq.heappop(entries)
            elif not flow.may_go:
                flow.stamp = -1
                heapq.heappop(entries)
            elif key != flow.job.key:
                heapq.heapreplace(entries, (flow.job.key, number, stamp, flow))
            else:
                return flow
        return None

    def park(self, where: tuple[Slots, ...], lanes_alive: int) -> None:
        """Stand in the heaps of `where`, and only there."""
        self.leave()
        flow = self.best()
        if flow is None:
            return
        self.parked_at = where
        for slots in where:
            slots.parked.push(self, flow.job.key, lanes_alive)

    def leave(self) -> None:
        """Stand nowhere."""
        self.stamp += 1
        self.parked_at = ()

    def tickets(self) -> Iterator[Ticket]:
        """Everything that waits in it."""
        for flow in self.flows.values():
            yield from flow.tickets

    def sides(self) -> Iterator[tuple[str, tuple[Slots, ...]]]:
        """(side, proxies) where it needs one."""
        if self.sources is not None:
            yield "source", self.sources
        if self.targets is not None:
            yield "target", self.targets

    def obstacle(self, *, is_elder: bool) -> tuple[Slots, ...]:
        """What it has to wait for, any one of them; () when its next task can begin."""
        for slots in self.fixed:
            if not slots.has_room(for_reserved=is_elder):
                return (slots,)
        for _, proxies in self.sides():
            if not any(item.has_room(for_reserved=is_elder) for item in proxies):
                return proxies
        return ()

    def least_busy(self, *, is_elder: bool) -> tuple[Slots | None, Slots | None]:
        """The (source, target) proxies to take where there is no obstacle. One proxy may do both
        sides of a task, and then takes one slot for it."""

        def free(proxies: tuple[Slots, ...]) -> list[Slots]:
            return [item for item in proxies if item.has_room(for_reserved=is_elder)]

        source = target = None
        if self.sources is not None:
            source = min(free(self.sources), key=Slots.load)
        if self.targets is not None:
            target = min(free(self.targets), key=lambda item: item.load(item is source))
        return source, target
