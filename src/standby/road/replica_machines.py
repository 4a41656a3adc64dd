"""The VMs of replicas at a target host that is no folder host: what verbs of replicas ask of it.

Files stay the business of whoever works in the replica's folder; this is the host's part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from standby.model.machine import PowerState
from standby.model.point import RestorePoint
from standby.road.replica import ReplicaFolder


class ReplicaMachines(Protocol):
    """The replica VMs of one host. Each call names the replica by its folder."""

    def power_state(self, folder: ReplicaFolder) -> PowerState:
        """What the replica's VM is doing; OFF where it has none yet."""

    def look(self, folders: Sequence[ReplicaFolder]) -> list[tuple[PowerState, tuple[str, ...]]]:
        """Of each replica what its VM is doing and, as sentences, what is not as a replica that is
        not failed over was left; OFF and nothing where it is not there yet. One question."""

    def check_untouched(self, folder: ReplicaFolder) -> None:
        """Raise ReplicaStarted where the VM is not off, or has checkpoints: it may have written to
        layers that only it knows."""

    def check_off(self, folder: ReplicaFolder) -> None:
        """Raise MachineRunning unless the VM is off, with how to stop it."""

    def describe(self, folder: ReplicaFolder, point: RestorePoint) -> list[str]:
        """Make the VM that of the point, attached to the ready layers, switched off; what there is
        to say of it."""

    def start(self, folder: ReplicaFolder) -> list[str]:
        """Start the VM, and wait for its guest; what is amiss with that, nothing when it is up."""

    def stop(self, folder: ReplicaFolder, *, force: bool, timeout_s: float) -> None:
        """Have the guest shut down; with `force` end it at once. MachineRunning where it does
        not."""

    def restore(self, folder: ReplicaFolder, point: RestorePoint, *, is_permanent: bool) -> None:
        """Give the VM what a source has and a replica not: its start with the host, checkpoints;
        one that is permanent is nobody's replica any more."""
