"""A Hyper-V host as the target of a job: makes, changes, starts, stops and looks at replica VMs.

Movers do all file work in the folder of replicas, as on a folder host; this owns only what the
host itself has to do. Replica VMs are found by their notes (`standby-replica:<replica id>`), which
are there from the moment the VM is, for they are part of what DefineSystem is given: one that was
half made when its maker died is found and completed, and a VM of the same name without our note is
never touched.

What is used of a host (all VMs of a request in one script):

    read    machines.ps1, as on the source side: what VMs are like, what they are attached to
            Msvm_ComputerSystem.EnabledState; Msvm_HeartbeatComponent.OperationalStatus
            Get-VMHostSupportedVersion; Get-Volume -FilePath; [IO.File]::GetAttributes(file)
    make    Msvm_VirtualSystemManagementService.DefineSystem(SystemSettings, no ResourceSettings):
              Msvm_VirtualSystemSettingData made with New-CimInstance -ClientOnly: ElementName,
              Notes, VirtualSystemSubType, Version, ConfigurationDataRoot, SnapshotDataRoot,
              SuspendDataRoot, SwapFileDataRoot, AutomaticStartupAction 2 (none), UserSnapshotType 2
              (disabled); no adapter, no SCSI controller and no drive comes with it
    change  ModifySystemSettings(the VM's settings as read, documented read/write properties
              assigned): BIOSGUID, BIOSSerialNumber, BaseBoardSerialNumber, ChassisSerialNumber,
              ChassisAssetTag, BootOrder, BootSourceOrder (the same texts in another order),
              SecureBootEnabled, SecureBootTemplateId, UserSnapshotType, AutomaticSnapshotsEnabled
            AddResourceSettings(settings, [embedded instances made with -ClientOnly]):
              Msvm_ResourceAllocationSettingData (ResourceType 6, ResourceSubType
              'Microsoft:Hyper-V:Synthetic SCSI Controller', VirtualSystemIdentifiers);
              Msvm_SyntheticEthernetPortSettingData (ResourceType 10, ResourceSubType
              'Microsoft:Hyper-V:Synthetic Ethernet Port', ElementName, Address, StaticMacAddress,
              VirtualSystemIdentifiers)
            RemoveResourceSettings([the instances]) of controllers that nothing hangs on
            AddBootSourceSettings(settings, [Msvm_BootSourceSettingData: BootSourceType,
              BootSourceDescription, FirmwareDevicePath, OtherLocation]): entries of files
            Set-VM -VM -AutomaticStartAction -AutomaticStopAction -CheckpointType
            Set-VMProcessor -VM -Count -CompatibilityForMigrationEnabled
              -ExposeVirtualizationExtensions
            Set-VMMemory -VM -DynamicMemoryEnabled -StartupBytes -MinimumBytes -MaximumBytes
            Get-VMHardDiskDrive, Add-VMHardDiskDrive -VM -ControllerType -ControllerNumber
              -ControllerLocation -Path; Set-VMHardDiskDrive
              -VMHardDiskDrive -Path; Remove-VMHardDiskDrive -VMHardDiskDrive
            Get-VMNetworkAdapter -VM (their Id is the InstanceID of their settings);
              Add-VMNetworkAdapter -VM -IsLegacy -Name -Passthru; Remove-VMNetworkAdapter,
              Rename-VMNetworkAdapter, Set-VMNetworkAdapter -StaticMacAddress or -DynamicMacAddress,
              Connect-VMNetworkAdapter -SwitchName, Disconnect-VMNetworkAdapter,
              Set-VMNetworkAdapterVlan -Access -VlanId or -Untagged: all with -VMNetworkAdapter
    power   Msvm_ComputerSystem.RequestStateChange(2 on, 3 off);
            Msvm_ShutdownComponent.InitiateShutdown(Force, Reason)
    remove  DestroySystem: the configuration, never a disk
    files   New-VHD -Path -ParentPath -Differencing; icacls.exe FOLDER /grant *SID:(OI)(CI)F
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from standby.errors import HostError, ReplicaConflict, ReplicaStarted, StandbyError
from standby.host.hyperv.files import folded
from standby.host.hyperv.machines import version_of
from standby.host.hyperv.rows import HostRows
from standby.host.hyperv.shape import FirmwareShape, MemoryShape, Shape
from standby.host.hyperv.target_plan import (
    CHECKPOINTS,
    STARTS,
    Found,
    Wanted,
    boot_order,
    change_of,
    fitting_version,
    found_replicas,
    missing_boot,
    ours,
    switches_of,
    warnings_of,
)
from standby.host.hyperv.target_power import (
    ReplicaPower,
    only_value,
    power_of,
    unfinished,
)
from standby.host.hyperv.target_requests import (
    controllers_request,
    drives_request,
    hardware_request,
    new_adapters_request,
    set_adapters_request,
    sources_request,
)
from standby.host.hyperv.target_rows import (
    ADAPTERS,
    ADD_ADAPTERS,
    ADD_BOOT,
    BOOT,
    CONTROLLERS,
    DEFINE,
    DRIVES,
    GRANT,
    HARDWARE,
    NEW_CHILDREN,
    REMOVE,
    RESTORE,
    VERSIONS,
    VOLUMES,
    Done,
)
from standby.host.hyperv.verbs import Verb
from standby.model.machine import PowerState


@dataclass(frozen=True, slots=True)
class KeptMachine:
    """A replica VM after `keep`: its id, whether it was made or changed, what to say of it; or the
    `error` that left it as it was."""

    id: str
    is_new: bool = False
    is_changed: bool = False
    warnings: tuple[str, ...] = ()
    error: StandbyError | None = None


@dataclass(frozen=True, slots=True)
class SeenMachine:
    """A replica VM as it was found: `attached` are its files by place, `findings` what somebody
    changed by hand, as sentences. `is_there` is False for one that is gone."""

    id: str
    is_there: bool
    power: PowerState = PowerState.OFF
    attached: Mapping[str, str] = field(default_factory=dict)
    snapshots: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()


class HyperVTarget(ReplicaPower):
    """The replica VMs of one host, or cluster, behind `door`. Safe to use from several threads for
    different replicas."""

    # --- looking -----------------------------------------------------------------------------

    def find(self, key: str) -> str:
        """The id of the replica VM of that identity, '' where there is none."""
        wanted = Wanted(key, "", "", _NO_SHAPE, {})
        there = ours_of(self.read_rows()).get(wanted.note)
        return there.id if there is not None else ""

    def look(self, replicas: Mapping[str, Mapping[str, str]]) -> dict[str, SeenMachine]:
        """How replica VMs are, by the identities of their replicas; `replicas` says to which files
        they were left attached, by place. One script, however many."""
        found = ours_of(self.read_rows())
        seen = {}
        for key, disks in replicas.items():
            wanted = Wanted(key, "", "", _NO_SHAPE, disks)
            there = found.get(wanted.note)
            seen[key] = SeenMachine("", False) if there is None else _seen(there, disks)
        return seen

    # --- keeping -----------------------------------------------------------------------------

    def keep(self, replicas: Sequence[Wanted]) -> dict[str, KeptMachine]:
        """Make the replica VMs that are not there, switched off, and bring the others in line; by
        their identities. One that cannot be kept has its error, and hinders no other.

        Repeated after a kill at any point it goes on from what is there. One script where all is
        as wanted already.
        """
        kept: dict[str, KeptMachine] = {}
        rows = self.read_rows()
        doubles = self._without_doubles(replicas, rows)
        if doubles:
            rows = self.read_rows()
        found = ours_of(rows)
        ready = []
        for wanted in replicas:
            problem = _refusal(self.name, wanted, rows, found.get(wanted.note))
            if problem is None:
                ready.append(wanted)
            else:
                kept[wanted.key] = KeptMachine("", error=problem)
        made = self._made([item for item in ready if item.note not in found], kept)
        if made:
            rows = self.read_rows()
            found = ours_of(rows)
        for wanted in ready:
            if wanted.key not in kept and wanted.note not in found:
                gone = HostError(self.name, f"the replica VM {wanted.name} is gone again")
                kept[wanted.key] = KeptMachine("", error=gone)
        ready = [item for item in ready if item.key not in kept]
        changed = self._in_line(ready, rows, found, kept)
        for wanted in ready:
            if wanted.key not in kept:
                there = found[wanted.note]
                kept[wanted.key] = KeptMachine(
                    there.id,
                    wanted.key in made,
                    wanted.key in changed,
                    (
                        *doubles.get(wanted.key, ()),
                        *made.get(wanted.key, ()),
                        *warnings_of(wanted, switches_of(rows)),
                    ),
                )
        return kept

    def _without_doubles(
        self, replicas: Sequence[Wanted], rows: HostRows
    ) -> dict[str, tuple[str, ...]]:
        """Remove all VMs of a replica but the one in use; {identity: warnings} where there were
        several."""
        found = ours(found_replicas(rows))
        warnings = {}
        for wanted in replicas:
            doubles = found.get(wanted.note, [])[1:]
            if doubles:
                warnings[wanted.key] = tuple(self._removed_double(item) for item in doubles)
        return warnings

    def _removed_double(self, double: Found) -> str:
        problem = f"it has checkpoints ({', '.join(double.snapshots)})" if double.snapshots else ""
        try:
            if not problem:
                self.remove(double.id)
        except StandbyError as exc:
            problem = str(exc)
        if not problem:
            return (
                f"a second VM of the replica ({double.id}), as a node leaves it that dies while "
                "it makes one, was removed; no disk was"
            )
        return (
            f"there is a second VM of the replica ({double.id}) that cannot be removed: {problem}. "
            f"Look at it, then `Get-VM -Id {double.id} | Remove-VM`, which removes no disk"
        )

    def _made(
        self, replicas: Sequence[Wanted], kept: dict[str, KeptMachine]
    ) -> dict[str, tuple[str, ...]]:
        """Make bare VMs; {identity: warnings} of those made."""
        if not replicas:
            return {}
        supported = self._door.run(VERSIONS, {}).value("host").versions
        warnings: dict[str, tuple[str, ...]] = {}
        asked = []
        for wanted in replicas:
            version = fitting_version(wanted.shape.version, supported)
            warnings[wanted.key] = ()
            if wanted.shape.version and version != wanted.shape.version:
                what = (
                    "newer" if version_of(wanted.shape.version) > version_of(version) else "older"
                )
                warnings[wanted.key] = (
                    f"the source has configuration version {wanted.shape.version}, {what} than "
                    f"this host runs: the replica VM has {version or 'its default'}",
                )
            asked.append(
                {
                    "id": wanted.key,
                    "note": wanted.note,
                    "name": wanted.name,
                    "generation": wanted.shape.generation,
                    "folder": wanted.folder,
                    "version": version,
                    "wait_s": self._wait_s,
                }
            )
        answer = self._door.run(DEFINE, {"replicas": asked})
        for key, error in answer.errors().items():
            kept[key] = KeptMachine("", error=error)
            warnings.pop(key, None)
        return warnings

    def _granted(self, left: _Left) -> None:
        """Let the VMs into their folders; what is made in them inherits it."""
        folders = {left.found[item.note].id: item.folder for item in left.replicas}
        if not folders:
            return
        asked = [
            {"id": machine, "path": folder, "sid": sid_of(machine)}
            for machine, folder in folders.items()
        ]
        answer = self._door.run(GRANT, {"folders": asked})
        problems: dict[str, StandbyError] = {**answer.errors()}
        for machine, granted in answer.values().items():
            if granted.code != 0:
                problems[machine] = HostError(
                    self.name,
                    f"{folders[machine]}: icacls ended with {granted.code} "
                    f"({'; '.join(granted.said)})",
                    f"The VM {machine} needs full control of the folder and of what is made in it",
                )
        left.drop(problems)

    def _in_line(
        self,
        replicas: Sequence[Wanted],
        rows: HostRows,
        found: dict[str, Found],
        kept: dict[str, KeptMachine],
    ) -> set[str]:
        """Change what is not as wanted; identities of the replicas changed."""
        switches = switches_of(rows)
        changes = {
            wanted.key: change_of(wanted, found[wanted.note], switches) for wanted in replicas
        }
        changed = {key for key, change in changes.items() if not change.is_nothing}
        devices = [item for item in replicas if changes[item.key].changes_devices]
        left = _Left([item for item in replicas if item.key in changed], kept, found)
        self._granted(left)
        self._run(left, HARDWARE, lambda item: hardware_request(item, changes[item.key]))
        self._run(left, DRIVES, lambda item: drives_request(changes[item.key].empty))
        self._run(left, CONTROLLERS, lambda item: controllers_request(changes[item.key]))
        self._run(left, ADD_ADAPTERS, lambda item: new_adapters_request(item, changes[item.key]))
        self._run(
            left,
            DRIVES,
            lambda item: drives_request(
                tuple(place.place for place in changes[item.key].attach),
                {place.place: place.file for place in changes[item.key].attach},
            ),
        )
        if any(item.key not in kept for item in devices):
            rows = self.read_rows()
            found |= ours_of(rows)
            changes = {
                item.key: change_of(item, found[item.note], switches) for item in left.replicas
            }
        self._run(left, ADAPTERS, lambda item: set_adapters_request(changes[item.key]))
        changed |= self._boot([item for item in replicas if item.key not in kept], found, kept)
        return changed

    def _boot(
        self, replicas: Sequence[Wanted], found: dict[str, Found], kept: dict[str, KeptMachine]
    ) -> set[str]:
        """Boot entries of generation 2, in the source's order; identities of replicas changed."""
        left = _Left([item for item in replicas if item.shape.generation == 2], kept, found)
        missing = {
            item.key: missing_boot(item.shape, found[item.note].shape) for item in left.replicas
        }
        changed = {key for key, entries in missing.items() if entries}
        if changed:
            self._run(left, ADD_BOOT, lambda item: sources_request(missing[item.key]))
            found |= ours_of(self.read_rows())
        orders = {item.key: boot_order(item.shape, found[item.note]) for item in left.replicas}
        self._run(
            left,
            BOOT,
            lambda item: {"order": list(orders[item.key])} if orders[item.key] else None,
        )
        return changed | {key for key, order in orders.items() if order}

    def _run(
        self,
        left: _Left,
        verb: Verb[Done],
        request: Callable[[Wanted], dict[str, Any] | None],
    ) -> None:
        """The verb for those of `left` that it has something to do for; who fails is out."""
        asked = {}
        for wanted in left.replicas:
            more = request(wanted)
            if more is not None:
                machine = left.found[wanted.note].id
                asked[machine] = {"id": machine, "wait_s": self._wait_s, **more}
        if not asked:
            return
        answer = self._door.run(verb, {"machines": list(asked.values())})
        problems: dict[str, StandbyError] = {**answer.errors()}
        for machine, done in answer.values().items():
            if done.state != "done":
                problems[machine] = unfinished(self.name, verb.name, machine, done)
        left.drop(problems)

    # --- attaching ---------------------------------------------------------------------------

    def attach(self, machine: str, disks: Mapping[str, str]) -> None:
        """Attach the VM, which is off and has no checkpoints, to these files by place, for an undo
        or an older point. ReplicaStarted where it runs."""
        there = self.found(machine)
        if not there.is_off:
            raise ReplicaStarted(there.name, self.name, "its VM is not off")
        if there.snapshots:
            raise ReplicaConflict(
                there.name,
                f"its VM has checkpoints of its own ({', '.join(there.snapshots)})",
                "Remove them (Remove-VMSnapshot), which merges them, then repeat",
            )
        now = {item.place: item.file for item in there.disks}
        wrong = [
            place for place, file in disks.items() if folded(now.get(place, "")) != folded(file)
        ]
        extra = [place for place in now if place not in disks]
        if wrong or extra:
            self.change(DRIVES, there.id, drives_request((*extra, *wrong), disks) or {})

    def new_children(self, children: Mapping[str, str]) -> None:
        """Make empty children, {child: parent}, on the host itself, where no mover sees it."""
        asked = [
            {"id": child, "path": child, "parent": parent} for child, parent in children.items()
        ]
        for error in self._door.run(NEW_CHILDREN, {"files": asked}).errors().values():
            raise error

    def free_bytes(self, folder: str) -> int:
        """Bytes left on the folder's volume, in the host's words."""
        asked = {"folders": [{"id": folder, "path": folder}]}
        return only_value(self._door.run(VOLUMES, asked)).free

    # --- at its own --------------------------------------------------------------------------

    def restore_automatic(self, machine: str, shape: Shape, *, is_permanent: bool = False) -> None:
        """Give a VM that is failed over its source's checkpoints and automatic start back; one
        that is permanent loses our note, too."""
        more = {
            "start": STARTS.get(shape.start_action, "Nothing"),
            "checkpoints": CHECKPOINTS.get(shape.checkpoint_type, "Production"),
            "changes_notes": is_permanent,
            "notes": "",
        }
        self.change(RESTORE, self.found(machine).id, more)

    def remove(self, machine: str) -> None:
        """Remove the VM's configuration, never a disk; nothing where it is gone. ReplicaStarted
        where it is not off."""
        rows = self.read_rows()
        if all(item.id != machine.lower() for item in found_replicas(rows)):
            return
        there = self.found(machine, rows)
        if not there.is_off:
            raise ReplicaStarted(there.name, self.name, "its VM is not off")
        self.change(REMOVE, there.id, {})


@dataclass(slots=True)
class _Left:
    """Replicas that are being changed; those with a problem drop out."""

    replicas: list[Wanted]
    kept: dict[str, KeptMachine]
    found: dict[str, Found]

    def drop(self, problems: Mapping[str, StandbyError]) -> None:
        """By VM id."""
        for wanted in list(self.replicas):
            machine = self.found[wanted.note].id
            if machine in problems:
                self.kept[wanted.key] = KeptMachine(machine, error=problems[machine])
                self.replicas.remove(wanted)


_NO_SHAPE = Shape("", 2, 1, MemoryShape(1), FirmwareShape())


def ours_of(rows: HostRows) -> dict[str, Found]:
    """The replica VMs that are in use, by their notes."""
    return {note: items[0] for note, items in ours(found_replicas(rows)).items()}


def sid_of(machine: str) -> str:
    """The identity that a VM's worker process runs under: S-1-5-83-1 and the GUID of the VM as four
    numbers; whatever language the host speaks."""
    data = uuid.UUID(machine).bytes_le
    numbers = [int.from_bytes(data[start : start + 4], "little") for start in range(0, 16, 4)]
    return "S-1-5-83-1-" + "-".join(map(str, numbers))


def _refusal(host: str, wanted: Wanted, rows: HostRows, there: Found | None) -> StandbyError | None:
    """Why the replica VM is not made or changed, None where nothing hinders it."""
    shape = wanted.shape
    if (shape.has_tpm or shape.is_shielded) and not wanted.rules.without_vtpm:
        return ReplicaConflict(
            wanted.name,
            f"the source VM {'is shielded' if shape.is_shielded else 'has a virtual TPM'}, whose "
            "keys do not leave its host",
            "without_vtpm = true in the job makes a replica VM without one",
        )
    if there is None:
        named = [row for row in rows.computers if row.element_name.lower() == wanted.name.lower()]
        if named:
            return ReplicaConflict(
                wanted.name,
                f"host {host} has a VM of that name already ({named[0].name}), which is no replica "
                "of this job",
                "Rename it, or give the job another name for its replicas",
            )
        return None
    if not there.is_off:
        what = "its VM is saved" if there.is_saved else "its VM is not off"
        return ReplicaStarted(wanted.name, wanted.folder, what)
    if there.snapshots:
        return ReplicaStarted(
            wanted.name, wanted.folder, f"its VM has checkpoints ({', '.join(there.snapshots)})"
        )
    return None


def _seen(found: Found, disks: Mapping[str, str]) -> SeenMachine:
    now = {item.place: item.file for item in found.disks}
    findings = []
    for place, file in disks.items():
        if place not in now:
            findings.append(f"its disk at {place} was taken away ({file})")
        elif folded(now[place]) != folded(file):
            findings.append(f"at {place} it is attached to {now[place]}, not to {file}")
    findings += [
        f"a disk was added at {place} ({file})" for place, file in now.items() if place not in disks
    ]
    findings += [f"somebody made the checkpoint {name}" for name in found.snapshots]
    return SeenMachine(found.id, True, power_of(found), now, found.snapshots, tuple(findings))
