"""The rows of a host and its cluster: services, jobs, switches, volumes, nodes, roles."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from hyperv.world import power
from hyperv.world.machines import BUILDS, Host, Job, Machine, ReferencePoint
from hyperv.world.rows_base import COMPONENTS, SERVICES, Found, RowsBase, switch_values
from standby.units import MiB


class HostRows(RowsBase):
    """What is not a part of one VM's settings."""

    def _devices(self, middle: str) -> Found:
        """Integration components: those of the VMs that run."""
        for machine in self.world.on_host(self.host.name):
            if not machine.runs:
                continue
            values = {
                "SystemCreationClassName": "Msvm_ComputerSystem",
                "SystemName": machine.id,
                "CreationClassName": f"Msvm_{middle}Component",
                "DeviceID": f"Microsoft:{machine.id}\\{COMPONENTS[middle]}",
                "ElementName": middle,
                "EnabledState": machine.integration.get(middle, 2),
                "OperationalStatus": list(power.contact(self.world, machine)),
            }
            if middle == "KvpExchange":
                values["GuestIntrinsicExchangeItems"] = power.guest_items(self.world, machine)
            yield values, machine

    def _points(self) -> Found:
        for machine in self.world.on_host(self.host.name):
            for point in machine.points:
                yield point_values(point), point

    # --- services, jobs, the host --------------------------------------------------------------

    def service_values(self, name: str) -> dict[str, Any]:
        """A service, of which each host has one."""
        return {
            "SystemCreationClassName": "Msvm_ComputerSystem",
            "SystemName": self.host.name.upper(),
            "CreationClassName": name,
            "Name": SERVICES[name],
            "ElementName": name,
            "EnabledState": 2,
            "Started": name not in self.host.stopped,
        }

    def _service(self, name: str) -> Found:
        known = self.classes[name.lower()].properties
        yield {k: v for k, v in self.service_values(name).items() if k in known}, name

    def _jobs(self, class_name: str) -> Found:
        for job in list(self.world.jobs.values()):
            if job.host == self.host.name and job.class_name == class_name:
                yield job_values(job), job

    def _switches(self) -> Found:
        for name in self.host.switches:
            yield (
                {
                    **switch_values(self.host, name),
                    "ElementName": name,
                    "EnabledState": 2,
                    "OperationalStatus": [2],
                },
                name,
            )

    def _volumes(self) -> Found:
        for volume in self.world.storage.seen_by(self.host.name):
            yield (
                {
                    "DeviceID": f"\\\\?\\Volume{{{volume.id}}}\\",
                    "Name": volume.windows.rstrip("\\") + "\\",
                    "FileSystem": volume.file_system,
                    "Capacity": volume.size,
                    "FreeSpace": volume.free,
                    "BlockSize": 4096,
                },
                volume,
            )

    def _system_of_host(self) -> Found:
        now = self.world.clock.now() + timedelta(seconds=self.host.skew_s)
        yield (
            {
                "Caption": f"Microsoft Windows Server {self.host.version} Datacenter",
                "CSName": self.host.name.upper(),
                "Version": f"10.0.{BUILDS[self.host.version]}",
                "BuildNumber": BUILDS[self.host.version],
                "LocalDateTime": now,
                "LastBootUpTime": now - timedelta(days=3),
                "FreePhysicalMemory": self.host.memory_free // 1024,
                "TotalVisibleMemorySize": self.host.memory // 1024,
                "OSLanguage": self.host.language,
                "ProductType": 3,
            },
            self.host,
        )

    def _computer_of_host(self) -> Found:
        yield (
            {
                "Name": self.host.name.upper(),
                "DNSHostName": self.host.name,
                "Domain": self.host.domain,
                "PartOfDomain": True,
                "NumberOfLogicalProcessors": self.host.processors,
                "TotalPhysicalMemory": self.host.memory,
            },
            self.host,
        )

    # --- the cluster ---------------------------------------------------------------------------

    def _members(self) -> list[Host]:
        hosts = self.world.hosts.values()
        return [h for h in hosts if self.host.cluster and h.cluster == self.host.cluster]

    def _cluster(self) -> Found:
        if self.host.cluster:
            levels = {2016: 9, 2019: 10, 2022: 11, 2025: 12}
            level = min(levels[h.version] for h in self._members())
            yield {"Name": self.host.cluster, "ClusterFunctionalLevel": level}, self.host

    def _nodes(self) -> Found:
        for number, host in enumerate(self._members(), 1):
            yield (
                {
                    "Name": host.name,
                    "Id": str(number),
                    "State": host.node_state,
                    "NodeDrainStatus": host.drain_status,
                },
                host,
            )

    def _clustered(self) -> Iterator[Machine]:
        names = {host.name for host in self._members()}
        for machine in self.world.machines.values():
            if machine.is_clustered and machine.host in names:
                yield machine

    def _groups(self) -> Found:
        for machine in self._clustered():
            yield (
                {
                    "Name": machine.name,
                    "Id": machine.group_id,
                    "State": 0 if machine.runs else 1,
                    "OwnerNode": machine.host,
                    "GroupType": 111,
                    "Priority": machine.priority,
                },
                machine,
            )

    def _resources_of_cluster(self) -> Found:
        for machine in self._clustered():
            yield (
                {
                    "Name": f"Virtual Machine {machine.name}",
                    "Id": machine.id.lower(),
                    "Type": "Virtual Machine",
                    "State": 2 if machine.runs else 3,
                    "OwnerGroup": machine.name,
                    "OwnerNode": machine.host,
                },
                machine,
            )

    def _shared_volumes(self) -> Found:
        for volume in self.world.storage.seen_by(self.host.name):
            if self.host.cluster and volume.owner:
                yield {"Name": volume.windows, "VolumeName": volume.id, "FaultState": 0}, volume

    def _partitions(self) -> Found:
        for volume in self.world.storage.seen_by(self.host.name):
            if self.host.cluster and volume.owner:
                yield (
                    {
                        "Path": volume.windows,
                        "VolumeGuid": volume.id,
                        "FileSystem": volume.file_system,
                        "TotalSize": volume.size // MiB,
                        "FreeSpace": volume.free // MiB,
                    },
                    volume,
                )


def point_values(point: ReferencePoint) -> dict[str, Any]:
    """A reference point as Msvm_VirtualSystemReferencePoint."""
    return {
        "InstanceID": point.instance_id,
        "VirtualSystemIdentifier": point.vm.id,
        "ReferencePointType": point.kind,
        "ConsistencyLevel": point.consistency,
        "HasAssociatedData": False,
        "VirtualDiskIdentifiers": [disk for disk, _ in point.disks],
        "ResilientChangeTrackingIdentifiers": [identifier for _, identifier in point.disks],
    }


def job_values(job: Job) -> dict[str, Any]:
    """A job as Msvm_ConcreteJob or Msvm_StorageJob."""
    is_well = job.state in (7, 32768)
    return {
        "InstanceID": job.id,
        "Name": job.caption,
        "ElementName": job.caption,
        "Caption": job.caption,
        "JobState": job.state,
        "JobType": job.kind,
        "JobStatus": "Job is completed successfully" if is_well else "Job is running",
        "TimeSubmitted": job.submitted,
        "PercentComplete": 100 if job.is_over else 10,
        "ErrorCode": job.error_code,
        "ErrorDescription": job.error_description or None,
        "OperationalStatus": [2] if not job.is_over or is_well else [6],
        "HealthState": 5,
        "Cancellable": False,
        "DeleteOnCompletion": False,
    }
