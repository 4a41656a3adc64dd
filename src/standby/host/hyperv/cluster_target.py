"""A failover cluster as the target of a job: as a host (target.py), and its replica VMs are roles.

A role has priority 0 until failover: the cluster moves the VM when its node dies, and never starts
it. What starts or stops it goes through the role, for a cluster restarts what it expects to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from standby.clock import SYSTEM_CLOCK, Clock
from standby.errors import HostError, MachineRunning
from standby.host.hyperv.cluster import ClusterDoor
from standby.host.hyperv.cluster_roles import SHUT_DOWN, TURN_OFF, ClusterRoles
from standby.host.hyperv.machines import OFF
from standby.host.hyperv.target import HyperVTarget, KeptMachine
from standby.host.hyperv.target_plan import Wanted, found_replicas
from standby.host.hyperv.target_power import WAIT_S, Heartbeat

START_S = 300
"""How long a role may take to come online."""


class ClusterTarget(HyperVTarget):
    """The replica VMs of one cluster. `door` goes to the node of each."""

    def __init__(
        self, name: str, door: ClusterDoor, clock: Clock = SYSTEM_CLOCK, *, wait_s: int = WAIT_S
    ) -> None:
        super().__init__(name, door, clock, wait_s=wait_s)
        self._cluster = door
        self.roles = ClusterRoles(door, name)

    def keep(self, replicas: Sequence[Wanted]) -> dict[str, KeptMachine]:
        """As on a host; what was made becomes a role, what was changed is told to the cluster. A
        replica that the cluster does not take is kept all the same, with a warning that has the
        command."""
        kept = super().keep(replicas)
        well = {key: item for key, item in kept.items() if item.error is None}
        if not well:
            return kept
        available = self.roles.make_all([item.id for item in well.values()])
        for key, item in well.items():
            found = available[item.id]
            if found.is_high:
                if item.is_changed:
                    self.roles.refresh(item.id)
                continue
            node = self._cluster.node_of(item.id)
            warning = f"{found.problem}; on node {node}: `{found.command}`"
            kept[key] = replace(item, warnings=(*item.warnings, warning))
        return kept

    def start(self, machine: str, files: Iterable[str] = (), heartbeat_s: float = 0) -> Heartbeat:
        """As on a host; through the role, where the VM is one."""
        if self.roles.look(machine) is None:
            return super().start(machine, files, heartbeat_s)
        problems = self.checks(machine, files)
        if problems:
            raise HostError(self.name, f"the replica VM is not started: {'; '.join(problems)}")
        self.roles.start(machine, START_S)
        return self.heartbeat(machine, heartbeat_s)

    def stop(self, machine: str, *, timeout_s: float, force: bool = False) -> None:
        """As on a host; through the role, where the VM is one."""
        there = self.found(machine)
        if there.enabled_state == OFF:
            return
        if self.roles.look(machine) is None:
            super().stop(machine, timeout_s=timeout_s, force=force)
            return
        reason = "the guest was not asked"
        if timeout_s > 0:
            try:
                self.roles.stop(machine, round(timeout_s), SHUT_DOWN)
                return
            except HostError as exc:
                reason = str(exc)
        if not force:
            raise MachineRunning(self.name, there.name, reason, "turn it off with --force")
        self.roles.stop(machine, round(self._wait_s), TURN_OFF)

    def remove(self, machine: str) -> None:
        """As on a host; its role goes first, once nothing hinders the removal."""
        ours = (item for item in found_replicas(self.read_rows()) if item.id == machine.lower())
        if any(item.note and item.is_off for item in ours):
            self.roles.remove(machine)
        super().remove(machine)
