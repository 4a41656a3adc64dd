"""Commands of one host of the model, called without a script."""

from __future__ import annotations

from typing import Any

from hyperv.dialect.values import Byte, Hashtable, UInt16
from hyperv.dialect.world import Call, PSError, Session
from hyperv.world import HostView, Machine, World

NS = r"root\virtualization\v2"


class Shell:
    """Calls commands of one host."""

    def __init__(self, world: World, host: str) -> None:
        self.world = world
        self.view = HostView(world, world.hosts[host])
        self.session = Session(host, world.clock)

    def __call__(self, name: str, /, **parameters: Any) -> list[Any]:
        def fail(error: PSError) -> None:
            raise error

        call = Call(name, Hashtable(parameters), None, self.session, print, fail)
        return list(self.view.cmdlets[name](call))

    def instances(self, class_name: str, **more: Any) -> list[Any]:
        return self("Get-CimInstance", Namespace=NS, ClassName=class_name, **more)

    def invoke(self, instance: Any, method: str, **arguments: Any) -> Any:
        (result,) = self(
            "Invoke-CimMethod",
            InputObject=instance,
            MethodName=method,
            Arguments=Hashtable(arguments),
        )
        return result

    def ended(self, result: Any) -> Any:
        """The job of a method, when it is over."""
        assert result.get("ReturnValue") == 4096
        for _ in range(100):
            (job,) = self("Get-CimInstance", InputObject=result.get("Job"))
            if job.get("JobState") >= 7:
                return job
            self.world.clock.sleep(0.5)
        raise AssertionError("the job does not end")

    def new(self, class_name: str, **values: Any) -> Any:
        """A client's copy, as New-CimInstance makes it."""
        (kind,) = self("Get-CimClass", Namespace=NS, ClassName=class_name)
        (made,) = self(
            "New-CimInstance", ClientOnly=True, CimClass=kind, Property=Hashtable(values)
        )
        return made

    def text(self, instance: Any) -> str:
        """An embedded instance's text, as the prelude's ToText makes it."""
        space = "Microsoft.Management.Infrastructure.Serialization"
        writer = self.view.types[f"{space}.CimSerializer"].statics["Create"]()
        none = self.view.types[f"{space}.InstanceSerializationOptions"].constants["None"]
        data: bytes = writer.methods["Serialize"](instance, none)
        return data.decode("utf-16-le")

    def snapshot(self, vm: Machine, level: int = 2, **values: Any) -> Any:
        """CreateSnapshot, as scripts make it: its result."""
        properties = {"ConsistencyLevel": Byte(level), "IgnoreNonSnapshottableDisks": True}
        setting = self.new("Msvm_VirtualSystemSnapshotSettingData", **{**properties, **values})
        return self.invoke(
            self.instances("Msvm_VirtualSystemSnapshotService")[0],
            "CreateSnapshot",
            AffectedSystem=self.computer(vm),
            SnapshotSettings=self.text(setting),
            SnapshotType=UInt16(32768),
        )

    def computer(self, vm: Machine) -> Any:
        (found,) = self.instances("Msvm_ComputerSystem", Filter=f"Name='{vm.id}'")
        return found

    def associated(self, instance: Any, class_name: str) -> list[Any]:
        return self("Get-CimAssociatedInstance", InputObject=instance, ResultClassName=class_name)
