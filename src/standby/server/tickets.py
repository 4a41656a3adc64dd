"""What is asked of the resources, and what one gets: requests, tickets, grants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from standby.errors import ResourcesBusy, SessionStopped, StandbyError

if TYPE_CHECKING:
    from standby.server.resources import Resources
    from standby.server.waiting import Flow, Slots


@dataclass(frozen=True, slots=True)
class Capacities:
    """Disks at once, by name; hosts and repositories that are not named have no limit, proxies that
    are not named do not exist. 0 drains: what runs goes on, what waits waits."""

    server: int | None = None
    proxies: Mapping[str, int] = field(default_factory=dict)
    hosts: Mapping[str, int] = field(default_factory=dict)
    repositories: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """One disk task. `source_proxies` and `target_proxies`: any of these; None: that side needs
    none. `refused` says of the other proxies why not: (side, name, reason), for the error. Limits
    of 0 are none. `size_bytes` is what it is expected to move."""

    job: str
    session: str
    machine: str
    place: str
    source_host: str = ""
    target_host: str = ""
    repository: str = ""
    source_proxies: tuple[str, ...] | None = None
    target_proxies: tuple[str, ...] | None = None
    refused: tuple[tuple[str, str, str], ...] = ()
    priority: int = 0
    weight: int = 1
    job_max_tasks: int = 0
    session_max_tasks: int = 0
    size_bytes: int = 0


class Grant:
    """The slots of one task, held until `release`, once; use it as a context manager."""

    __slots__ = ("_give_back", "_held", "request", "source_proxy", "target_proxy", "waited_s")

    def __init__(
        self,
        give_back: Callable[[Grant], None],
        request: TaskRequest,
        held: tuple[Slots, ...],
        source: Slots | None,
        target: Slots | None,
        waited_s: float,
    ) -> None:
        self._give_back = give_back
        self._held: tuple[Slots, ...] | None = held
        self.request = request
        self.source_proxy = source.name if source else ""
        self.target_proxy = target.name if target else ""
        self.waited_s = waited_s

    def release(self) -> None:
        """Give the slots back; further calls do nothing."""
        self._give_back(self)

    def __enter__(self) -> Grant:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Ticket:
    """A task's place in the queue. Ends with a grant, an error, or being cancelled."""

    __slots__ = ("_event", "_flow", "_resources", "asked_at", "error", "grant", "on_end", "request")

    def __init__(
        self,
        resources: Resources,
        request: TaskRequest,
        asked_at: float,
        on_end: Callable[[Ticket], None] | None,
    ) -> None:
        self._resources = resources
        self._event: threading.Event | None = None
        self._flow: Flow | None = None
        self.request = request
        self.asked_at = asked_at
        self.on_end = on_end
        self.grant: Grant | None = None
        self.error: StandbyError | None = None

    @property
    def is_waiting(self) -> bool:
        """Whether neither a grant nor an error is there yet."""
        return self.grant is None and self.error is None

    def wait(self, timeout_s: float | None = None) -> Grant:
        """The grant, when it is our turn. Raises NoProxy, SessionStopped when cancelled, and
        ResourcesBusy after `timeout_s`, with the place in the queue given up."""
        event = self._resources._event_of(self)
        if event is not None and not event.wait(timeout_s):
            request = self.request
            self._resources._give_up(
                self,
                ResourcesBusy(request.job, request.machine, request.place, timeout_s or 0.0),
            )
        if self.grant is not None:
            return self.grant
        assert self.error is not None
        raise self.error

    def cancel(self) -> None:
        """Wait no more: waiting threads get SessionStopped; a grant already there is released."""
        if self.grant is None:
            stopped = SessionStopped(self.request.job, self.request.machine)
            self._resources._give_up(self, stopped)
        if self.grant is not None:
            self.grant.release()
