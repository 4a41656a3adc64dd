"""The Hyper-V module's commands about VMs as wholes, and about the host."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hyperv.dialect.values import Int64, PSEnum, PSObject
from hyperv.dialect.world import Call, Cmdlet, PSError
from hyperv.world import building, parts, power
from hyperv.world.binding import Bound
from hyperv.world.errors import ReturnCode, WorkFailed, hyperv_error
from hyperv.world.machines import (
    OFF,
    PAUSED,
    RUNNING,
    SAVED,
    STARTING,
    STOPPING,
    VERSIONS,
    Adapter,
    Controller,
    Machine,
)
from hyperv.world.methods import Methods
from hyperv.world.power import FileRefused
from hyperv.world.storage import SharingViolation

SPACE = "Microsoft.HyperV.PowerShell"
STATES = {
    RUNNING: "Running",
    OFF: "Off",
    PAUSED: "Paused",
    SAVED: "Saved",
    STARTING: "Starting",
    STOPPING: "Stopping",
}
START_ACTIONS = {"Nothing": 2, "StartIfRunning": 3, "Start": 4}
STOP_ACTIONS = {"TurnOff": 2, "Save": 3, "ShutDown": 4}
CHECKPOINTS = {"Disabled": 2, "Production": 3, "ProductionOnly": 4, "Standard": 5}
SHUTDOWN_S = 300
"""How long Stop-VM waits for a guest."""
UNASKED = ("Confirm", "Passthru")


class Failed(Exception):
    """What a command says it cannot do."""

    def __init__(self, message: str, category: str = "InvalidArgument") -> None:
        super().__init__(message)
        self.category = category


class VmObject(PSObject):
    """What Get-VM emits: how a VM was when it was asked for."""

    def __init__(self, machine: Machine) -> None:
        properties = {
            "Id": uuid.UUID(machine.id),
            "VMId": uuid.UUID(machine.id),
            "Name": machine.name,
            "VMName": machine.name,
            "State": PSEnum(f"{SPACE}.VMState", STATES[machine.state], machine.state),
            "Generation": machine.generation,
            "Version": machine.version,
            "ProcessorCount": Int64(machine.processors),
            "MemoryStartup": Int64(machine.memory),
            "DynamicMemoryEnabled": machine.dynamic_memory,
            "Notes": machine.notes,
            "IsClustered": machine.is_clustered,
            "ComputerName": machine.host.upper(),
        }
        super().__init__(
            (f"{SPACE}.VirtualMachine", "System.Object"),
            properties,
            text=f"VirtualMachine (Name = '{machine.name}') [Id = '{machine.id.lower()}']",
            read_only=properties,
        )
        self.machine = machine


def listed(value: Any) -> list[Any]:
    """One or several, as a list."""
    return [] if value is None else value if isinstance(value, list) else [value]


class Commands:
    """What commands of the module have in common, on one host."""

    def __init__(self, methods: Methods) -> None:
        self.methods = methods
        self.world = methods.world
        self.host = methods.host

    def made(
        self, commands: Mapping[str, tuple[Callable[[Bound], Iterator[object]], str]]
    ) -> dict[str, Cmdlet]:
        """Commands by name; the text has the parameters that the model follows."""
        return {
            name: self._checked(command, frozenset(follows.split()))
            for name, (command, follows) in commands.items()
        }

    def _checked(
        self, command: Callable[[Bound], Iterator[object]], follows: frozenset[str]
    ) -> Cmdlet:
        def run(call: Call) -> Iterator[object]:
            bound = Bound(call)
            if bound.piped:
                bound.values[bound.piped] = list(call.inputs or [])
            for name in bound.values:
                if name not in follows and name not in UNASKED:
                    raise NotImplementedError(f"the model has no {call.name} -{name}")
            try:
                fault = self.world.take_fault(call.name, self.host.name, self._first(bound))
                if fault is not None:
                    raise Failed(f"the host failed with {fault.code}", "NotSpecified")
                answer = list(command(bound))
            except (Failed, ReturnCode, WorkFailed, FileRefused, SharingViolation) as exc:
                raise self._error(exc, call.name) from exc
            if call.name.lower().startswith(("get-", "new-")) or bound.get("Passthru"):
                yield from answer

        return run

    @staticmethod
    def _error(exc: Exception, command: str) -> PSError:
        if isinstance(exc, Failed):
            category, error_id = exc.category, "InvalidParameter"
        else:
            category, error_id = "NotSpecified", "OperationFailed"
        if isinstance(exc, ReturnCode):
            exc = Failed(f"The operation failed with error code '{exc.code}'.")
        return hyperv_error(str(exc), category, error_id, command.replace("-", ""))

    def _first(self, bound: Bound) -> Machine | None:
        for value in bound.values.values():
            for each in listed(value):
                machine = getattr(each, "machine", None)
                if isinstance(machine, Machine):
                    return machine
        return None

    def machines(self, bound: Bound) -> list[Machine]:
        """The VMs of a call: by object, name or id; Failed for one that is not there."""
        known = self.world.on_host(self.host.name)
        result = []
        for each in listed(bound.get("VM")):
            if each.machine not in known:
                raise Failed(
                    "Hyper-V was unable to find a virtual machine with id "
                    f'"{each.machine.id.lower()}".'
                )
            result.append(each.machine)
        for name in listed(bound.get("VMName") or bound.get("Name")):
            found = [m for m in known if m.name.lower() == str(name).lower()]
            if not found:
                raise Failed(f'Hyper-V was unable to find a virtual machine with name "{name}".')
            result += found
        return result


class VmCommands(Commands):
    """Get-VM and what changes a VM."""

    def cmdlets(self) -> dict[str, Cmdlet]:
        """By name."""
        return self.made(
            {
                "Get-VM": (self.get, "Id Name"),
                "New-VM": (self.new, "Name Generation MemoryStartupBytes NoVHD Path Version"),
                "Set-VM": (
                    self.change,
                    "VM Name AutomaticStartAction AutomaticStopAction AutomaticStartDelay "
                    "CheckpointType AutomaticCheckpointsEnabled Notes NewVMName ProcessorCount "
                    "StaticMemory DynamicMemory MemoryStartupBytes MemoryMinimumBytes "
                    "MemoryMaximumBytes",
                ),
                "Start-VM": (self.start, "VM Name"),
                "Stop-VM": (self.stop, "VM Name Force TurnOff Save"),
                "Remove-VM": (self.remove, "VM Name Force"),
                "Get-VMHost": (self.get_host, ""),
                "Get-VMHostSupportedVersion": (self.get_versions, "Default"),
                "Set-VMProcessor": (
                    self.set_processor,
                    "VM VMName Count CompatibilityForMigrationEnabled "
                    "ExposeVirtualizationExtensions",
                ),
                "Set-VMMemory": (
                    self.set_memory,
                    "VM VMName DynamicMemoryEnabled StartupBytes MinimumBytes MaximumBytes",
                ),
                "Set-VMFirmware": (
                    self.set_firmware,
                    "VM VMName EnableSecureBoot SecureBootTemplate SecureBootTemplateId "
                    "FirstBootDevice",
                ),
            }
        )

    def get(self, bound: Bound) -> Iterator[object]:
        """Get-VM."""
        identity = bound.get("Id")
        if identity is not None:
            known = self.world.on_host(self.host.name)
            found = [m for m in known if uuid.UUID(m.id) == identity]
            if not found:
                raise Failed(f'Hyper-V was unable to find a virtual machine with id "{identity}".')
        else:
            found = self.machines(bound) or self.world.on_host(self.host.name)
        yield from (VmObject(machine) for machine in found)

    def new(self, bound: Bound) -> Iterator[object]:
        """New-VM: with an adapter that is connected to nothing and, for generation 2, a SCSI
        controller."""
        version = bound.get("Version") or VERSIONS[self.host.version]
        if version not in self.host.supported:
            raise Failed(f"The version {version} is not supported.")
        name = bound.get("Name") or "New Virtual Machine"
        root = bound.get("Path") or self.host.default_folder
        folder = self.world.storage.path(self.host.name, f"{root}\\{name}")
        if folder is None:
            raise Failed(f"The path '{root}' is not there.", "ObjectNotFound")
        generation = int(bound.get("Generation") or 1)
        machine = Machine(name, self.host.name, folder, generation, version, state=OFF)
        machine.is_made, machine.created = True, self.world.clock.now()
        machine.processors = 1
        machine.memory = bound.get("MemoryStartupBytes") or 1 << 30
        machine.guest = building.replace(self.host.guest)
        if generation == 1:
            machine.controllers = [Controller.ide(0), Controller.ide(1)]
            machine.secure_boot = False
        machine.controllers.append(Controller("SCSI", 0))
        machine.adapters = [Adapter(mac="000000000000")]
        (folder / "Virtual Machines").mkdir(parents=True, exist_ok=True)
        (folder / "Virtual Machines" / f"{machine.id}.vmcx").write_bytes(bytes(512))
        building.sync_boot(machine)
        self.world.machines[machine.id] = machine
        yield VmObject(machine)

    def change(self, bound: Bound) -> Iterator[object]:
        """Set-VM."""
        for machine in self.machines(bound):
            plain = {
                "AutomaticStartDelay": "start_delay",
                "AutomaticCheckpointsEnabled": "automatic_checkpoints",
                "Notes": "notes",
                "NewVMName": "name",
            }
            chosen = {
                "AutomaticStartAction": ("start_action", START_ACTIONS),
                "AutomaticStopAction": ("stop_action", STOP_ACTIONS),
                "CheckpointType": ("checkpoint_type", CHECKPOINTS),
            }
            if bound.get("ProcessorCount") is not None:
                self._processor(machine, bound.get("ProcessorCount"), None, None)
            self._memory(
                machine,
                bound.get("MemoryStartupBytes"),
                bound.get("MemoryMinimumBytes"),
                bound.get("MemoryMaximumBytes"),
                True
                if bound.get("DynamicMemory")
                else False
                if bound.get("StaticMemory")
                else None,
            )
            for name, attribute in plain.items():
                if bound.get(name) is not None:
                    setattr(machine, attribute, bound.get(name))
            for name, (attribute, codes) in chosen.items():
                if bound.get(name) is not None:
                    setattr(machine, attribute, codes[bound.get(name)])
            yield VmObject(machine)

    def start(self, bound: Bound) -> Iterator[object]:
        """Start-VM; of one that runs it says so in a warning only."""
        for machine in self.machines(bound):
            if machine.state != RUNNING:
                self.world.start(machine)
            yield VmObject(machine)

    def stop(self, bound: Bound) -> Iterator[object]:
        """Stop-VM."""
        for machine in self.machines(bound):
            if bound.get("TurnOff") or bound.get("Save"):
                if machine.runs:
                    self.world.turn_off(machine, SAVED if bound.get("Save") else OFF)
            elif machine.runs:
                self._end(machine, force=bool(bound.get("Force")))
            yield VmObject(machine)

    def _end(self, machine: Machine, *, force: bool) -> None:
        code = power.shut_down(self.world, machine, force=force)
        if code not in (0, power.IN_PROGRESS):
            raise Failed(
                f"'{machine.name}' failed to shut down: error code {code}.", "NotSpecified"
            )
        for _ in range(SHUTDOWN_S):
            if not machine.runs:
                return
            self.world.clock.sleep(1)
            self.world.settle()
        raise Failed(f"'{machine.name}' did not shut down in time.", "OperationTimeout")

    def remove(self, bound: Bound) -> Iterator[object]:
        """Remove-VM; without -Force it asks, which nobody can answer."""
        for machine in self.machines(bound):
            if not bound.get("Force"):
                raise Failed("Windows PowerShell is in NonInteractive mode.", "InvalidOperation")
            if machine.runs or machine.activity is not None:
                raise Failed(
                    "The operation cannot be performed while the virtual machine is in its "
                    "current state.",
                    "InvalidOperation",
                )
            building.remove(self.methods, machine)
            yield VmObject(machine)

    def get_host(self, bound: Bound) -> Iterator[object]:
        """Get-VMHost."""
        values = {
            "Name": self.host.name.upper(),
            "ComputerName": self.host.name.upper(),
            "LogicalProcessorCount": Int64(self.host.processors),
            "MemoryCapacity": Int64(self.host.memory),
            "VirtualMachinePath": self.host.default_folder,
            "VirtualHardDiskPath": self.host.default_folder,
        }
        yield PSObject((f"{SPACE}.VMHost", "System.Object"), values, read_only=values)

    def get_versions(self, bound: Bound) -> Iterator[object]:
        """Get-VMHostSupportedVersion."""
        newest = VERSIONS[self.host.version]
        for version in self.host.supported:
            if bound.get("Default") and version != newest:
                continue
            values = {"Name": f"Windows {version}", "Version": version}
            values["IsDefault"] = version == newest
            yield PSObject((f"{SPACE}.VMHostSupportedVersion", "System.Object"), values)

    # --- processors, memory, firmware ------------------------------------------------------------

    def _processor(
        self, machine: Machine, count: int | None, limits: bool | None, nested: bool | None
    ) -> None:
        parts.set_processors(
            self.methods,
            machine,
            machine.processors if count is None else count,
            machine.limits_features if limits is None else limits,
            machine.nested if nested is None else nested,
        )

    def set_processor(self, bound: Bound) -> Iterator[object]:
        """Set-VMProcessor."""
        for machine in self.machines(bound):
            self._processor(
                machine,
                bound.get("Count"),
                bound.get("CompatibilityForMigrationEnabled"),
                bound.get("ExposeVirtualizationExtensions"),
            )
            yield PSObject((f"{SPACE}.VMProcessor", "System.Object"), {"VMName": machine.name})

    def _memory(
        self,
        machine: Machine,
        startup: int | None,
        low: int | None,
        high: int | None,
        is_dynamic: bool | None,
    ) -> None:
        if startup is low is high is is_dynamic is None:
            return
        parts.set_memory(
            machine,
            machine.memory if startup is None else startup,
            machine.memory_minimum if low is None else low,
            machine.memory_maximum if high is None else high,
            machine.dynamic_memory if is_dynamic is None else is_dynamic,
        )

    def set_memory(self, bound: Bound) -> Iterator[object]:
        """Set-VMMemory."""
        for machine in self.machines(bound):
            self._memory(
                machine,
                bound.get("StartupBytes"),
                bound.get("MinimumBytes"),
                bound.get("MaximumBytes"),
                bound.get("DynamicMemoryEnabled"),
            )
            yield PSObject((f"{SPACE}.VMMemory", "System.Object"), {"VMName": machine.name})

    def set_firmware(self, bound: Bound) -> Iterator[object]:
        """Set-VMFirmware: generation 2 only, while the VM is off."""
        templates = {name.lower(): key for key, name in building.TEMPLATES.items()}
        for machine in self.machines(bound):
            if machine.generation != 2:
                raise Failed("The virtual machine is not of generation 2.")
            if machine.state != OFF:
                raise Failed("The virtual machine is not off.", "InvalidOperation")
            if bound.get("EnableSecureBoot") is not None:
                machine.secure_boot = bound.get("EnableSecureBoot") == "On"
            template = bound.get("SecureBootTemplate")
            if template is not None:
                if template.lower() not in templates:
                    raise Failed(f"There is no secure boot template '{template}'.")
                machine.secure_boot_template = templates[template.lower()]
            if bound.get("SecureBootTemplateId") is not None:
                identity = str(bound.get("SecureBootTemplateId")).upper()
                if identity not in building.TEMPLATES:
                    raise Failed(f"There is no secure boot template '{identity}'.")
                machine.secure_boot_template = identity
            first = bound.get("FirstBootDevice")
            if first is not None:
                entries = [e for e in machine.boot_entries if e[2] == first.boot_place]
                others = [e for e in machine.boot_entries if e not in entries]
                machine.boot_entries = entries + others
            yield PSObject((f"{SPACE}.VMFirmware", "System.Object"), {"VMName": machine.name})
