"""Replica VMs by their ids: found, asked about one by one, turned on and off.

A VM is started only when no running VM has one of its MAC addresses and Hyper-V takes its files;
then its guest's heartbeat is waited for, with a limit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import HostError, MachineRunning, ReplicaConflict
from standby.host.hyperv.answers import Answer
from standby.host.hyperv.asking import Asking
from standby.host.hyperv.machines import OFF, RUNNING
from standby.host.hyperv.rows import MACHINES, HostRows
from standby.host.hyperv.target_plan import Found, found_replicas, running_macs
from standby.host.hyperv.target_rows import (
    CHANGE_STATE,
    FILE_STATES,
    HEARTBEATS,
    SHUT_DOWN,
    Done,
)
from standby.host.hyperv.verbs import Value, Verb
from standby.model.machine import PowerState

WAIT_S = 120
"""How long a script waits for a job of the host; one that goes on then is found done later."""
POLL_S = 2.0
SPARSE, COMPRESSED, ENCRYPTED = 0x200, 0x800, 0x4000
"""FileAttributes that Hyper-V starts no VM from."""
_REMEDIES = {
    SPARSE: ("sparse", "fsutil sparse setflag '{path}' 0"),
    COMPRESSED: ("compressed", "compact /u '{path}'"),
    ENCRYPTED: ("encrypted", "cipher /d '{path}'"),
}


class Heartbeat(StrEnum):
    """How a guest answers after its start."""

    OK = "heartbeat OK"
    NONE = "no integration services: nothing tells whether the guest is up"
    NOT_YET = "no heartbeat yet"


class ReplicaPower:
    """The replica VMs of one host, or cluster, behind `door`: which there are, on and off."""

    def __init__(
        self, name: str, door: Asking, clock: Clock = SYSTEM_CLOCK, *, wait_s: int = WAIT_S
    ) -> None:
        self.name = name
        self._door = door
        self._clock = clock
        self._wait_s = wait_s

    def read_rows(self) -> HostRows:
        """Every VM of the host, as its classes have it."""
        return self._door.run(MACHINES, {}).value("host")

    def found(self, machine: str, rows: HostRows | None = None) -> Found:
        """The VM of that id; HostError where it is gone, ReplicaConflict where it is not ours."""
        for item in found_replicas(rows or self.read_rows()):
            if item.id == machine.lower():
                if not item.note:
                    raise ReplicaConflict(
                        item.name, f"the VM {item.name} ({item.id}) has no note of standby's"
                    )
                return item
        raise HostError(self.name, f"the replica VM {machine} is not on the host any more")

    def change(self, verb: Verb[Done], machine: str, more: Mapping[str, Any]) -> None:
        """Run the verb for one VM; HostError where it does not end in time."""
        request = {"machines": [{"id": machine, "wait_s": self._wait_s, **more}]}
        done = only_value(self._door.run(verb, request))
        if done.state == "unfinished":
            raise unfinished(self.name, verb.name, machine, done)

    def checks(self, machine: str, files: Iterable[str]) -> list[str]:
        """What hinders a start: a running VM with one of its MAC addresses, files that Hyper-V
        refuses. ReplicaConflict where the VM is not ours."""
        rows = self.read_rows()
        there = self.found(machine, rows)
        problems = []
        if there.enabled_state == OFF:
            taken = running_macs(rows)
            problems = [
                f"adapter {item.shape.name} has the MAC address {item.shape.mac} of the VM "
                f"{taken[item.shape.mac]}, which is on: turn that off, or give the adapter another "
                "(Set-VMNetworkAdapter -DynamicMacAddress)"
                for item in there.adapters
                if item.shape.mac in taken
            ]
        asked = [{"id": path, "path": path} for path in files]
        if asked:
            answer = self._door.run(FILE_STATES, {"files": asked})
            problems += [str(error) for error in answer.errors().values()]
            for path, state in answer.values().items():
                for bit, (what, remedy) in _REMEDIES.items():
                    if state.attributes & bit:
                        problems.append(
                            f"{path} is {what}, which Hyper-V does not start from: "
                            f"`{remedy.format(path=path)}`"
                        )
        return problems

    def power_state(self, machine: str) -> PowerState:
        """Whether the VM is off, runs or is paused; saved is paused: it was started."""
        return power_of(self.found(machine))

    def start(self, machine: str, files: Iterable[str] = (), heartbeat_s: float = 0) -> Heartbeat:
        """Start the VM after `checks`, and wait that long for its guest's heartbeat. HostError with
        all that hinders it."""
        problems = self.checks(machine, files)
        if problems:
            raise HostError(self.name, f"the replica VM is not started: {'; '.join(problems)}")
        self.change(CHANGE_STATE, machine, {"wanted": RUNNING})
        return self.heartbeat(machine, heartbeat_s)

    def heartbeat(self, machine: str, limit_s: float = 0) -> Heartbeat:
        """How the guest answers, as soon as it does, or when the limit is reached."""
        until = self._clock.monotonic() + limit_s
        while True:
            seen = only_value(self._door.run(HEARTBEATS, {"machines": [{"id": machine}]}))
            if not seen.integration or 2 not in seen.integration:
                return Heartbeat.NONE
            if seen.heartbeat and seen.heartbeat[0] == 2:
                return Heartbeat.OK
            if self._clock.monotonic() >= until:
                return Heartbeat.NOT_YET
            self._clock.sleep(POLL_S)

    def stop(self, machine: str, *, timeout_s: float, force: bool = False) -> None:
        """Have the guest shut down; MachineRunning where it does not within the limit, and it is
        turned off then only with `force`."""
        there = self.found(machine)
        if there.enabled_state == OFF:
            return
        reason = "the guest was not asked"
        if timeout_s > 0 and there.enabled_state == RUNNING:
            reason = self._shut_down(machine, timeout_s)
            if not reason:
                return
        if not force:
            raise MachineRunning(self.name, there.name, reason, "turn it off with --force")
        self.change(CHANGE_STATE, machine, {"wanted": OFF})

    def _shut_down(self, machine: str, timeout_s: float) -> str:
        """Ask the guest, and wait; why the VM is on still, '' when it is off."""
        asked = {
            "machines": [{"id": machine, "force": True, "reason": "standby stops the replica"}]
        }
        code = only_value(self._door.run(SHUT_DOWN, asked)).code
        if code not in (0, 4096, 32782):
            return f"the guest takes no shutdown (InitiateShutdown: {code})"
        until = self._clock.monotonic() + timeout_s
        while self._clock.monotonic() < until:
            seen = only_value(self._door.run(HEARTBEATS, {"machines": [{"id": machine}]}))
            if not seen.enabled or seen.enabled[0] == OFF:
                return ""
            self._clock.sleep(POLL_S)
        return f"its guest did not shut down within {timeout_s:g} s"


def only_value(answer: Answer[Value]) -> Value:
    """The value of the only step."""
    return answer.value(answer.steps[0].id) if answer.steps else answer.value("")


def unfinished(host: str, verb: str, machine: str, done: Done) -> HostError:
    """The error for a change that did not end."""
    if done.state == "gone":
        return HostError(host, f"the replica VM {machine} is not on the host any more")
    return HostError(
        host, f"{verb} of the replica VM {machine} goes on still (job {done.job})", "Repeat later"
    )


def power_of(found: Found) -> PowerState:
    """Off is off: one that is saved was started."""
    if found.enabled_state == OFF:
        return PowerState.OFF
    return PowerState.RUNNING if found.enabled_state == RUNNING else PowerState.PAUSED
