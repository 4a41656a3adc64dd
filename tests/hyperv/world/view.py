"""One host as scripts see it: what the dialect's interpreter takes for its world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from hyperv.dialect.values import Properties
from hyperv.dialect.world import Call, Cmdlet, DotNetType
from hyperv.world import account, open_files, volumes
from hyperv.world.cim import Cim
from hyperv.world.clusters import Clusters
from hyperv.world.device_commands import DeviceCommands
from hyperv.world.embedded import serializer_types
from hyperv.world.machines import Host
from hyperv.world.rows import Rows
from hyperv.world.vm_commands import VmCommands
from hyperv.world.world import World


class HostView:
    """The commands and types of one host of the world."""

    def __init__(self, world: World, host: Host) -> None:
        self.world = world
        self.host = host
        self.rows = Rows(world, host)
        self.cim = Cim(self.rows)
        devices = DeviceCommands(self.cim.methods)
        made: dict[str, Cmdlet] = {
            "Get-CimClass": self.cim.get_class,
            "New-CimInstance": self.cim.new_instance,
            "Get-CimInstance": self.cim.get_instance,
            "Get-CimAssociatedInstance": self.cim.get_associated,
            "Invoke-CimMethod": self.cim.invoke,
            **volumes.cmdlets(self.rows),
            **open_files.cmdlets(self.rows),
            **Clusters(self.rows).cmdlets(),
            **account.cmdlets(host),
            **VmCommands(self.cim.methods).cmdlets(),
            **devices.cmdlets(),
        }
        self._cmdlets: Any = Properties({name: self._guarded(made[name]) for name in made})
        self._types = {**serializer_types(self.rows.classes), **account.types(host)}
        self._types.update(devices.types())

    @property
    def cmdlets(self) -> Mapping[str, Cmdlet]:
        """The commands, by name; case does not count."""
        commands: Mapping[str, Cmdlet] = self._cmdlets
        return commands

    @property
    def types(self) -> Mapping[str, DotNetType]:
        """The .NET types."""
        return self._types

    def _guarded(self, cmdlet: Callable[[Call], Iterator[object]]) -> Cmdlet:
        """One call at a time in the whole world, on a host that is there."""

        def run(call: Call) -> Iterator[object]:
            with self.world.lock:
                self.world.arrive(self.host.name, call.name, dict(call.parameters.items()))
                answer = list(cmdlet(call))
            yield from answer

        return run
