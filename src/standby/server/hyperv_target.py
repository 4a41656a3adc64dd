"""Replica VMs at a Hyper-V target: what a session keeps and the verbs of replicas ask for.

Whoever works in the replica's folder has made its ready layers; the VM is attached to them by the
paths that its host sees (`host_folder` in replica.json).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath

from standby.errors import HostError, MachineRunning, ReplicaStarted
from standby.host.hyperv.shape import Shape, from_state_files
from standby.host.hyperv.target import HyperVTarget, KeptMachine, SeenMachine
from standby.host.hyperv.target_plan import TargetRules, Wanted, shape_from
from standby.host.hyperv.target_power import Heartbeat
from standby.model.machine import Machine, PowerState
from standby.model.point import RestorePoint
from standby.model.replica import ReplicaIdentity, ReplicaRecord
from standby.road.naming import READY
from standby.road.points import replicated_disks
from standby.road.replica import ReplicaFolder

HEARTBEAT_S = 300.0
"""How long a guest has to say that it is up, after its start."""


def key_of(identity: ReplicaIdentity) -> str:
    """What the notes of the replica's VM say (RULES 1)."""
    return "/".join(
        (identity.installation, identity.source_host, identity.machine_id, identity.job)
    )


def wanted_machine(
    identity: ReplicaIdentity,
    name: str,
    host_folder: str,
    machine: Machine,
    state_files: Mapping[str, str],
    ready: Mapping[str, str],
    rules: TargetRules,
) -> Wanted:
    """The replica VM of a source VM as it was at a point; `ready` maps places to files relative to
    the folder. HostError where what the source told of the VM cannot be read."""
    folder = PureWindowsPath(host_folder)
    return Wanted(
        key_of(identity),
        name,
        str(folder),
        shape_at(machine, state_files),
        {place: str(folder / file) for place, file in ready.items()},
        rules,
    )


def shape_at(machine: Machine, state_files: Mapping[str, str]) -> Shape:
    """The VM's hardware as its host had it; from another kind of host what the point knows."""
    try:
        return from_state_files(dict(state_files)) or shape_from(machine)
    except ValueError as exc:
        raise HostError("target", f"the VM's hardware cannot be read: {exc}") from exc


class HyperVReplicas:
    """The replica VMs of one Hyper-V host or cluster; `road.replica_machines.ReplicaMachines`.
    `rules` are those of each job, by name."""

    def __init__(
        self,
        target: HyperVTarget,
        rules: Mapping[str, TargetRules] | None = None,
        *,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._target = target
        self._rules = rules or {}
        self._heartbeat_s = heartbeat_s

    def keep(self, wanted: Wanted) -> KeptMachine:
        """Make the VM, or bring it in line; its error is raised."""
        kept = self._target.keep([wanted])[wanted.key]
        if kept.error is not None:
            raise kept.error
        return kept

    def rules_of(self, job: str) -> TargetRules:
        """How the job wants its replica VMs."""
        return self._rules.get(job, TargetRules())

    # --- the verbs of replicas ---------------------------------------------------------------

    def _machine(self, record: ReplicaRecord) -> str:
        """The id of the replica's VM, '' where it has none yet."""
        return self._target.find(key_of(record.identity))

    def _there(self, folder: ReplicaFolder) -> str:
        found = self._machine(folder.record())
        if not found:
            raise HostError(
                self._target.name,
                f"the replica {folder.name} has no VM on the host",
                "The next session, or a failover, makes it",
            )
        return found

    def power_state(self, folder: ReplicaFolder) -> PowerState:
        """See ReplicaMachines."""
        return self._seen([folder])[0].power

    def look(self, folders: Sequence[ReplicaFolder]) -> list[tuple[PowerState, tuple[str, ...]]]:
        """See ReplicaMachines."""
        found: list[tuple[PowerState, tuple[str, ...]]] = []
        for seen in self._seen(folders):
            is_off = seen.power is PowerState.OFF
            on = () if is_off else (f"its host says that its VM is {seen.power}",)
            found.append((seen.power, (*on, *seen.findings) if seen.is_there else ()))
        return found

    def check_untouched(self, folder: ReplicaFolder) -> None:
        """See ReplicaMachines."""
        (seen,) = self._seen([folder])
        evidence = ""
        if seen.power is not PowerState.OFF:
            evidence = f"its host says that its VM is {seen.power}"
        elif seen.snapshots:
            evidence = f"its VM has checkpoints ({', '.join(seen.snapshots)})"
        if evidence:
            raise ReplicaStarted(folder.name, str(folder.path), evidence)

    def _seen(self, folders: Sequence[ReplicaFolder]) -> list[SeenMachine]:
        """The VMs beside what they were left attached to."""
        left: dict[str, dict[str, str]] = {}
        keys = []
        for folder in folders:
            record = folder.record()
            keys.append(key_of(record.identity))
            disks = left[keys[-1]] = {}
            if record.ready_point:
                home = PureWindowsPath(record.host_folder)
                for disk in replicated_disks(folder.point(record.ready_point)):
                    disks[disk.place] = str(home / disk.disk_id / READY)
        found = self._target.look(left)
        return [found[key] for key in keys]

    def check_off(self, folder: ReplicaFolder) -> None:
        """See ReplicaMachines."""
        state = self.power_state(folder)
        if state is not PowerState.OFF:
            raise MachineRunning(
                self._target.name,
                folder.name,
                f"its host says that it is {state}",
                f"`standby replica power off {folder.name}` stops it",
            )

    def describe(self, folder: ReplicaFolder, point: RestorePoint) -> list[str]:
        """See ReplicaMachines."""
        record = folder.record()
        ready = {disk.place: f"{disk.disk_id}/{READY}" for disk in replicated_disks(point)}
        if not ready:
            return []
        if not record.host_folder:
            raise HostError(
                self._target.name,
                f"the replica {folder.name} does not say where its host sees its folder",
                "It was made for a folder host: begin it anew for this one",
            )
        kept = self.keep(
            wanted_machine(
                record.identity,
                record.name,
                record.host_folder,
                point.machine,
                point.state_files,
                ready,
                self.rules_of(record.identity.job),
            )
        )
        return list(kept.warnings)

    def start(self, folder: ReplicaFolder) -> list[str]:
        """See ReplicaMachines; the files checked are the ready layers and all below them."""
        record = folder.record()
        files = [str(PureWindowsPath(record.host_folder) / file) for file in _files(folder, record)]
        answer = self._target.start(self._there(folder), files, self._heartbeat_s)
        return [] if answer is Heartbeat.OK else [f"the replica VM runs: {answer}"]

    def stop(self, folder: ReplicaFolder, *, force: bool, timeout_s: float) -> None:
        """See ReplicaMachines."""
        self._target.stop(self._there(folder), timeout_s=timeout_s, force=force)

    def restore(self, folder: ReplicaFolder, point: RestorePoint, *, is_permanent: bool) -> None:
        """See ReplicaMachines."""
        shape = shape_at(point.machine, point.state_files)
        self._target.restore_automatic(self._there(folder), shape, is_permanent=is_permanent)


def _files(folder: ReplicaFolder, record: ReplicaRecord) -> list[str]:
    """Every file that the VM opens, relative to the folder."""
    found = [layer.file for layer in (record.ready or {}).values()]
    if record.ready_point:
        point = folder.point(record.ready_point)
        found += [layer.file for disk in replicated_disks(point) for layer in disk.chain]
    return found


__all__ = ["HyperVReplicas", "key_of", "shape_at", "wanted_machine"]
