"""What the resources look like at one moment, for `/metrics` and `standby infrastructure`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from standby.server.waiting import JobTurns, Lane, Slots


@dataclass(frozen=True, slots=True)
class SlotUse:
    """One proxy, host, repository or the server. `limit` None: any number. `waiting` tasks could
    not begin without a slot of it; of several proxies that would do, each counts them. `problem`
    is why a proxy takes no task."""

    kind: str
    name: str
    used: int
    limit: int | None
    waiting: int
    bytes_in_flight: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class JobUse:
    """One job that has tasks waiting or running."""

    name: str
    priority: int
    weight: int
    running: int
    waiting: int
    longest_wait_s: float


@dataclass(frozen=True, slots=True)
class Usage:
    """All of it. `granted` and `waited_s` count since the start: tasks begun, and the seconds they
    had waited by then."""

    slots: tuple[SlotUse, ...]
    jobs: tuple[JobUse, ...]
    running: int
    waiting: int
    granted: int
    waited_s: float


def slot_uses(slots: Iterable[Slots], lanes: Iterable[Lane]) -> tuple[SlotUse, ...]:
    """Each of `slots`, in order of kind and name."""
    waiting: Counter[Slots] = Counter()
    for lane in lanes:
        count = sum(len(flow.tickets) for flow in lane.flows.values())
        for item in {*lane.fixed, *(lane.sources or ()), *(lane.targets or ())}:
            waiting[item] += count
    found = [
        SlotUse(
            item.kind, item.name, item.used, item.limit, waiting[item], item.bytes, item.problem
        )
        for item in slots
    ]
    return tuple(sorted(found, key=lambda use: (use.kind, use.name)))


def job_uses(jobs: Iterable[JobTurns], now: float) -> tuple[JobUse, ...]:
    """Each of `jobs`, by name."""
    found = []
    for job in jobs:
        oldest = [next(iter(flow.tickets)).asked_at for flow in job.flows]
        found.append(
            JobUse(
                job.name,
                job.priority,
                job.weight,
                job.slots.used,
                sum(len(flow.tickets) for flow in job.flows),
                now - min(oldest) if oldest else 0.0,
            )
        )
    return tuple(sorted(found, key=lambda use: use.name))
