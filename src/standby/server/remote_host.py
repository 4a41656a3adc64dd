"""A host on another machine, driven through the mover beside it (verbs of road.host_verbs)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import msgspec

from standby.errors import LinkError, MoverDied
from standby.model.extent import Extent
from standby.model.job import ReplicationJob
from standby.model.machine import Checkpoint, Inventory, Machine, PowerState
from standby.ports import Host
from standby.server.crew import Handle
from standby.server.fleet import Fleet, Station


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the host's tracker says (ports.TrackedChanges)."""

    ranges: Sequence[Extent] | None
    reason: str


class RemoteHost:
    """Implements `ports.Host` and `ports.Inventoried`; a mover that is away raises MoverDied or
    LinkError."""

    def __init__(
        self, name: str, fleet: Fleet, station: Station, patience_s: float | None = None
    ) -> None:
        """`patience_s`: how long its mover is waited for when it is away
        (`ServiceMover.is_there`)."""
        self.name = name
        self._fleet = fleet
        self._station = station
        self._patience_s = patience_s

    def impatient(self, patience_s: float) -> RemoteHost:
        """The same host, whose mover is waited for so long only."""
        return RemoteHost(self.name, self._fleet, self._station, patience_s)

    def at_target(self, job: ReplicationJob) -> RemoteHost:
        """The host, the job's target, as a target proxy sees it that a session would take; NoProxy
        where none does."""
        stations = self._fleet.stations(job, "target")
        station = stations[self._fleet.least_busy(stations)]
        return RemoteHost(self.name, self._fleet, station, self._patience_s)

    @property
    def mover(self) -> str:
        """The name of its mover."""
        return self._station.mover

    def root(self) -> str:
        """The host's folder in its mover's words."""
        return str(self._asked(lambda mover, root: root))

    def ask(self, verb: str, **arguments: Any) -> Any:
        """What its mover answers to a verb, of whatever role."""
        return self._asked(lambda mover, root: mover.call(verb, **arguments))

    def _call(self, verb: str, **arguments: Any) -> Any:
        return self._asked(
            lambda mover, root: mover.call(f"host_{verb}", root=root, host=self.name, **arguments)
        )

    def _asked(self, question: Callable[[Handle, str], Any]) -> Any:
        """What comes of `question`, asked of the mover and told the host's folder there."""
        name = f"{self._station.mover} of host {self.name}"
        try:
            service = self._fleet.mover(self._station.mover)
            if self._patience_s is not None and not service.is_there(self._patience_s):
                raise service.why_away()
            return question(service, self._fleet.place(self._station))
        except MoverDied as exc:
            away = copy(exc)  # of its own class, as below
            away.mover = name
            raise away from exc
        except LinkError as exc:
            named = copy(exc)  # that says what to do about it
            named.peer = f"mover {name}"
            raise named from exc

    def machines(self) -> list[Machine]:
        """See ports.Host."""
        return msgspec.convert(self._call("machines"), list[Machine])

    def inventory(self) -> Inventory:
        """See ports.Inventoried."""
        return msgspec.convert(self._call("inventory"), Inventory)

    def power_state(self, machine: Machine) -> PowerState:
        """See ports.Host."""
        return PowerState(self._call("power_state", machine=_plain(machine)))

    def start(self, machine: Machine) -> None:
        """Start the VM."""
        self._call("start", machine=_plain(machine))

    def stop(self, machine: Machine, *, force: bool = False, timeout_s: float = 60) -> None:
        """Shut the VM down, or end it with `force`."""
        self._call("stop", machine=_plain(machine), force=force, timeout_s=timeout_s)

    def take_checkpoint(self, machine: Machine, intent_id: str) -> Checkpoint:
        """See ports.Host."""
        taken = self._call("take_checkpoint", machine=_plain(machine), intent_id=intent_id)
        return msgspec.convert(taken, Checkpoint)

    def confirm_checkpoint(self, checkpoint: Checkpoint) -> None:
        """See ports.Host."""
        self._call("confirm_checkpoint", checkpoint=_plain(checkpoint))

    def release_checkpoint(self, checkpoint: Checkpoint) -> dict[str, str]:
        """See ports.Host."""
        return dict(self._call("release_checkpoint", checkpoint=_plain(checkpoint)))

    def release_intent(self, intent_id: str) -> list[str]:
        """See ports.IntentReleasing."""
        return list(self._call("release_intent", intent_id=intent_id))

    def release_leftovers(self) -> list[str]:
        """See ports.Host."""
        return list(self._call("release_leftovers"))

    def state_files(self, machine: Machine) -> dict[str, str]:
        """See ports.Host."""
        return dict(self._call("state_files", machine=_plain(machine)))

    def changes_since(
        self, machine: Machine, place: str, tracker_id: str, checkpoint: Checkpoint
    ) -> _Answer:
        """See ports.Host."""
        answer = self._call(
            "changes_since",
            machine=_plain(machine),
            place=place,
            tracker_id=tracker_id,
            checkpoint=_plain(checkpoint),
        )
        ranges = answer["ranges"]
        if ranges is not None:
            ranges = [Extent(offset, length) for offset, length in ranges]
        return _Answer(ranges, answer["reason"])

    def forget_tracker(self, machine: Machine, tracker_ids: Sequence[str]) -> None:
        """See ports.Host."""
        self._call("forget_tracker", machine=_plain(machine), tracker_ids=list(tracker_ids))


def impatient(host: Host, patience_s: float | None) -> Host:
    """The host, whose mover, where it has one, is waited for so long only."""
    if patience_s is None or not isinstance(host, RemoteHost):
        return host
    return host.impatient(patience_s)


def _plain(value: Machine | Checkpoint) -> Any:
    return msgspec.to_builtins(value)
