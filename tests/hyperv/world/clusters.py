"""Failover clusters: their commands on each node, and what happens to nodes and roles.

Which commands a remote session may run without CredSSP: the published pages of the FailoverClusters
module say of Add-ClusterVirtualMachineRole and Move-ClusterVirtualMachineRole that they "cannot be
run remotely without Credential Security Service Provider (CredSSP)"; those of the others here have
no such note, so those work.  What the pages do not print is assumed (assumed.toml): a role is
`ClusterGroup` with GroupType and Priority, a volume has OwnerNode and SharedVolumeInfo.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hyperv.dialect.values import PSEnum, PSObject, UInt32
from hyperv.dialect.world import Call, Cmdlet, PSError
from hyperv.world.binding import Bound
from hyperv.world.errors import WorkFailed
from hyperv.world.machines import OFF, RUNNING, SAVED, Host, Machine
from hyperv.world.rows import Rows
from hyperv.world.storage import Volume
from hyperv.world.world import World

MODULE = "Microsoft.FailoverClusters.PowerShell"
NEEDS_SECOND_HOP = ("Add-ClusterVirtualMachineRole", "Move-ClusterVirtualMachineRole")
UP, DOWN, PAUSED, JOINING = 0, 1, 2, 3
_NODE_STATES = {UP: "Up", DOWN: "Down", PAUSED: "Paused", JOINING: "Joining"}
ONLINE, OFFLINE, FAILED, PENDING = 0, 1, 2, 4
_GROUP_STATES = {ONLINE: "Online", OFFLINE: "Offline", FAILED: "Failed", PENDING: "Pending"}
TURN_OFF, SAVE, SHUT_DOWN, SHUT_DOWN_BY_FORCE = 0, 1, 2, 3
"""The VM resource's OfflineAction; a new role has SAVE."""
VIRTUAL_MACHINE = 111
"""GroupType."""


# --- what tests do ------------------------------------------------------------------------------


def pause(world: World, name: str) -> None:
    """The node takes no more roles; those that it has stay."""
    world.hosts[name].node_state = PAUSED


def kill(world: World, name: str, *, after_s: float = 0.0, restarts: bool = True) -> None:
    """The node dies.  `after_s` later its roles are on the first node that is up: running again
    where they ran, or failed and off where they do not restart; until then no node has them."""
    if not after_s and restarts:
        world.kill(name)
        return
    moving = [machine for machine in world.on_host(name) if machine.is_clustered]
    ran = {machine.id for machine in moving if machine.runs}
    world.kill(name, takes_over=False)

    def take_over() -> None:
        node = next((h for h in members(world, name) if h.is_up and h.node_state == UP), None)
        for machine in moving:
            if node is None or machine.host != name:
                continue
            machine.host = node.name
            if machine.id in ran and not restarts:
                machine.role_failed = True
                world.turn_off(machine)
            world.merge_left(machine)

    world.later(after_s, take_over)


def members(world: World, name: str) -> list[Host]:
    """The nodes of that node's cluster."""
    cluster = world.hosts[name].cluster
    return [host for host in world.hosts.values() if cluster and host.cluster == cluster]


def state_of(world: World, machine: Machine) -> int:
    """How the VM's role stands."""
    if machine.role_failed:
        return FAILED
    if not world.hosts[machine.host].is_up:
        return PENDING
    return ONLINE if machine.runs else OFFLINE


# --- objects ------------------------------------------------------------------------------------


def _enum(kind: str, names: Mapping[int, str], value: int) -> PSEnum:
    return PSEnum(f"{MODULE}.{kind}", names[value], value)


def _object(kind: str, properties: Mapping[str, Any], text: str) -> PSObject:
    return PSObject(
        (f"{MODULE}.{kind}", "System.Object"), properties, text=text, read_only=properties
    )


def _node(host: Host) -> PSObject:
    return _object(
        "ClusterNode",
        {
            "Name": host.name,
            "State": _enum("ClusterNodeState", _NODE_STATES, host.node_state),
            "NodeWeight": UInt32(1),
            "DrainStatus": _enum(
                "ClusterNodeDrainStatus",
                {0: "NotInitiated", 1: "InProgress", 2: "Completed", 3: "Failed"},
                host.drain_status,
            ),
        },
        host.name,
    )


class Group(PSObject):
    """A role; its priority is written to the cluster when it is assigned."""

    def __init__(self, world: World, machine: Machine) -> None:
        super().__init__(
            (f"{MODULE}.ClusterGroup", "System.Object"),
            {
                "Cluster": world.hosts[machine.host].cluster,
                "IsCoreGroup": False,
                "OwnerNode": _node(world.hosts[machine.host]),
                "State": _enum("ClusterGroupState", _GROUP_STATES, state_of(world, machine)),
                "Name": machine.role,
                "Id": machine.group_id,
                "GroupType": _enum("GroupType", {111: "VirtualMachine"}, VIRTUAL_MACHINE),
                "Priority": UInt32(machine.priority),
            },
            text=machine.role,
            read_only=["IsCoreGroup", "OwnerNode", "State", "Id", "GroupType"],
        )
        self.machine = machine

    def set(self, name: str, value: Any) -> None:
        """Only the priority is modelled."""
        if name.lower() != "priority":
            raise PermissionError(name)
        if value not in (0, 1000, 2000, 3000):
            raise PSError("The parameter is incorrect", "InvalidArgument", "ClusterGroup.Priority")
        super().set(name, UInt32(value))
        self.machine.priority = int(value)


class Resource(PSObject):
    """One of the two resources of a VM's role."""

    def __init__(self, world: World, machine: Machine, kind: str) -> None:
        state = {ONLINE: "Online", OFFLINE: "Offline", FAILED: "Failed", PENDING: "Pending"}
        name = f"{kind} {machine.name}"
        super().__init__(
            (f"{MODULE}.ClusterResource", "System.Object"),
            {
                "Name": name,
                "State": _enum("ClusterResourceState", state, state_of(world, machine)),
                "OwnerGroup": Group(world, machine),
                "OwnerNode": _node(world.hosts[machine.host]),
                "ResourceType": _object("ClusterResourceType", {"Name": kind}, kind),
            },
            text=name,
        )
        self.machine = machine


def _volume(world: World, volume: Volume, number: int) -> PSObject:
    info = _object(
        "ClusterSharedVolumeInfo",
        {
            "FriendlyVolumeName": volume.windows,
            "Partition": _object(
                "ClusterDiskPartitionInfo", {"FreeSpace": volume.free, "Size": volume.size}, ""
            ),
        },
        "",
    )
    name = f"Cluster Disk {number}"
    return _object(
        "ClusterSharedVolume",
        {
            "Name": name,
            "State": PSEnum(f"{MODULE}.ClusterResourceState", "Online", 2),
            "OwnerNode": _node(world.hosts[volume.owner]),
            "SharedVolumeInfo": [info],
        },
        name,
    )


# --- commands -----------------------------------------------------------------------------------


class Clusters:
    """The commands on one node."""

    def __init__(self, rows: Rows) -> None:
        self.world: World = rows.world
        self.host: Host = rows.host

    def cmdlets(self) -> dict[str, Cmdlet]:
        """By name."""
        made: dict[str, Callable[[Bound], Iterator[object]]] = {
            "Get-Cluster": self.get_cluster,
            "Get-ClusterNode": self.get_node,
            "Get-ClusterGroup": self.get_group,
            "Get-ClusterResource": self.get_resource,
            "Get-ClusterSharedVolume": self.get_volume,
            "Get-ClusterSharedVolumeState": self.get_volume_state,
            "Add-ClusterVirtualMachineRole": self.add_role,
            "Move-ClusterVirtualMachineRole": self.move_role,
            "Start-ClusterGroup": self.start_group,
            "Stop-ClusterGroup": self.stop_group,
            "Set-ClusterParameter": self.set_parameter,
            "Remove-ClusterGroup": self.remove_group,
            "Update-ClusterVirtualMachineConfiguration": self.update_configuration,
        }
        return {name: self._checked(name, command) for name, command in made.items()}

    def _checked(self, name: str, command: Callable[[Bound], Iterator[object]]) -> Cmdlet:
        """A command of a member of a cluster that was asked about its own."""

        def run(call: Call) -> Iterator[object]:
            bound = Bound(call)
            if bound.get("Cluster") not in (None, "."):
                raise NotImplementedError("the model has the local cluster only")
            if not self.host.cluster:
                raise self._error(
                    "The cluster service is not running.  Make sure that the service is running "
                    "on all nodes in the cluster.",
                    "ConnectionError",
                    call.name,
                    0x80070006,
                )
            if name in NEEDS_SECOND_HOP and not self.host.has_credssp:
                raise self._error(
                    "You do not have administrative privileges on the cluster. Contact your "
                    "network administrator to request access. Access is denied",
                    "AuthenticationError",
                    call.name,
                    0x80070005,
                )
            yield from command(bound)

        return run

    @staticmethod
    def _error(message: str, category: str, command: str, hresult: int) -> PSError:
        return PSError(
            message,
            category,
            command,
            hresult,
            f"{MODULE}.ClusterCmdletException",
            command_type=f"{MODULE}.{command.replace('-', '')}Command",
        )

    def _not_found(self, what: str, command: str) -> PSError:
        return self._error(
            f"Unable to find {what} in the cluster '{self.host.cluster}'.",
            "ObjectNotFound",
            command,
            0x8007139A,
        )

    def _clustered(self) -> list[Machine]:
        names = {host.name for host in members(self.world, self.host.name)}
        return [
            machine
            for machine in self.world.machines.values()
            if machine.is_clustered and machine.host in names
        ]

    def _roles(self, bound: Bound) -> list[Machine]:
        """Those that the call names, all where it names none."""
        given = bound.get("InputObject")
        if isinstance(given, Group | Resource):
            return [given.machine]
        if given is not None:
            raise NotImplementedError(f"the model takes no {given.ps_type}")
        command = bound.signature.name
        identity, names = bound.get("VMId"), bound.get("Name")
        if identity is None and names is None:
            return self._clustered()
        found = [
            machine
            for machine in self._clustered()
            if machine.id.lower() == str(identity).lower()
            or machine.role.lower() in {str(name).lower() for name in _listed(names)}
        ]
        if not found:
            raise self._not_found(f"a group for {identity or names}", command)
        return found

    def _role(self, bound: Bound) -> Machine:
        return self._roles(bound)[0]

    def get_cluster(self, bound: Bound) -> Iterator[object]:
        """Get-Cluster."""
        if bound.get("Name") not in (None, ".", self.host.cluster):
            raise NotImplementedError("the model has the local cluster only")
        yield _object("Cluster", {"Name": self.host.cluster}, self.host.cluster)

    def get_node(self, bound: Bound) -> Iterator[object]:
        """Get-ClusterNode."""
        wanted = {str(name).lower() for name in _listed(bound.get("Name"))}
        for host in members(self.world, self.host.name):
            if not wanted or host.name.lower() in wanted:
                yield _node(host)

    def get_group(self, bound: Bound) -> Iterator[object]:
        """Get-ClusterGroup."""
        for machine in self._roles(bound):
            yield Group(self.world, machine)

    def get_resource(self, bound: Bound) -> Iterator[object]:
        """Get-ClusterResource."""
        for machine in self._roles(bound):
            yield Resource(self.world, machine, "Virtual Machine")
            yield Resource(self.world, machine, "Virtual Machine Configuration")

    def _volumes(self) -> list[tuple[int, Volume]]:
        seen = self.world.storage.seen_by(self.host.name)
        return list(enumerate((volume for volume in seen if volume.owner), 1))

    def get_volume(self, bound: Bound) -> Iterator[object]:
        """Get-ClusterSharedVolume; the coordinator is a node that is up."""
        for number, volume in self._volumes():
            if not self.world.hosts[volume.owner].is_up:
                volume.owner = self.host.name
            yield _volume(self.world, volume, number)

    def get_volume_state(self, bound: Bound) -> Iterator[object]:
        """Get-ClusterSharedVolumeState: a line for each volume and node."""
        for number, volume in self._volumes():
            for host in members(self.world, self.host.name):
                if not host.is_up:
                    continue
                is_redirected = host.name in volume.redirected
                names = {0: "Direct", 1: "FileSystemRedirected"}
                yield _object(
                    "ClusterSharedVolumeState",
                    {
                        "Name": f"Cluster Disk {number}",
                        "VolumeName": f"\\\\?\\Volume{{{volume.id}}}\\",
                        "Node": host.name,
                        "StateInfo": _enum("SharedVolumeStateInfo", names, int(is_redirected)),
                        "VolumeFriendlyName": volume.windows.rpartition("\\")[2],
                    },
                    "",
                )

    def add_role(self, bound: Bound) -> Iterator[object]:
        """Add-ClusterVirtualMachineRole: the VM's files lie on the cluster's own storage."""
        command = bound.signature.name
        identity = str(bound.get("VMId")).lower()
        machine = next(
            (m for m in self.world.on_host(self.host.name) if m.id.lower() == identity), None
        )
        if machine is None:
            raise self._not_found(f"the virtual machine {identity}", command)
        if machine.is_clustered:
            raise self._error(
                f"The virtual machine '{machine.name}' is already clustered.",
                "InvalidOperation",
                command,
                0x80071394,
            )
        for drive in machine.disks():
            if drive.path is not None and not self._is_shared(drive.path):
                raise self._error(
                    f"The storage '{drive.path.name}' of '{machine.name}' is not on the cluster's "
                    "storage.",
                    "InvalidOperation",
                    command,
                    0x80071713,
                )
        machine.is_clustered = True
        machine.role_name = bound.get("Name") or ""
        machine.priority = 2000
        machine.offline_action = SAVE
        yield Group(self.world, machine)

    def _is_shared(self, path: Any) -> bool:
        return any(volume.folder in path.parents for _, volume in self._volumes())

    def move_role(self, bound: Bound) -> Iterator[object]:
        """Move-ClusterVirtualMachineRole, done at once."""
        machine = self._role(bound)
        target = str(bound.get("Node"))
        node = next((h for h in members(self.world, self.host.name) if h.name == target), None)
        if node is None or node.node_state != UP:
            raise self._error(
                f"The node '{target}' takes no roles.", "InvalidOperation", "Move", 0x800713AB
            )
        self.world.move(machine, node.name)
        yield Group(self.world, machine)

    def start_group(self, bound: Bound) -> Iterator[object]:
        """Start-ClusterGroup."""
        machine = self._role(bound)
        machine.role_failed = False
        try:
            if not machine.runs:
                self.world.start(machine)
        except WorkFailed as exc:
            machine.role_failed = True
            raise self._error(
                exc.description, "InvalidOperation", bound.signature.name, 0x8007174B
            ) from exc
        yield Group(self.world, machine)

    def stop_group(self, bound: Bound) -> Iterator[object]:
        """Stop-ClusterGroup: the VM ends as its resource's OfflineAction says."""
        machine = self._role(bound)
        machine.role_failed = False
        if machine.state == RUNNING:
            self.world.turn_off(machine, SAVED if machine.offline_action == SAVE else OFF)
        yield Group(self.world, machine)

    def set_parameter(self, bound: Bound) -> Iterator[object]:
        """Set-ClusterParameter: OfflineAction of a VM."""
        given = bound.get("InputObject")
        if not isinstance(given, Resource) or bound.get("Name") != "OfflineAction":
            raise NotImplementedError("the model has OfflineAction of a VM's resource only")
        given.machine.offline_action = int(bound.get("Value"))
        return
        yield

    def remove_group(self, bound: Bound) -> Iterator[object]:
        """Remove-ClusterGroup; without -Force it asks, which nobody can answer."""
        machine = self._role(bound)
        command = bound.signature.name
        if not bound.get("Force"):
            raise self._error("it asks for confirmation", "InvalidOperation", command, 0x80131509)
        if not bound.get("RemoveResources"):
            raise self._error(
                "The cluster group has resources.", "InvalidOperation", command, 0x80071396
            )
        machine.is_clustered = False
        return
        yield

    def update_configuration(self, bound: Bound) -> Iterator[object]:
        """Update-ClusterVirtualMachineConfiguration."""
        machine = self._role(bound)
        yield Resource(self.world, machine, "Virtual Machine Configuration")


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]
