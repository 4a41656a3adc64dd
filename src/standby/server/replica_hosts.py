"""Which hosts of the configuration have replica VMs of their own making: all but folder hosts."""

from __future__ import annotations

from collections.abc import Callable

from standby.clock import Clock
from standby.ports import Host
from standby.road.replica_machines import ReplicaMachines
from standby.server.config import Config


def machines_at(
    config: Config, name: str, host: Callable[[str], Host], clock: Clock
) -> ReplicaMachines | None:
    """The replica VMs of the host of that name, None for a folder host, or one of no job."""
    found = config.hosts.get(name)
    if found is None or found.hyperv is None or not found.hyperv.replicas:
        return None
    from standby.host.hyperv.cluster import ClusterDoor
    from standby.host.hyperv.cluster_target import ClusterTarget
    from standby.host.hyperv.source import HyperVSource  # heavy
    from standby.host.hyperv.target import HyperVTarget
    from standby.host.hyperv.target_plan import TargetRules
    from standby.server.hyperv_target import HyperVReplicas

    its = host(name)
    if not isinstance(its, HyperVSource):
        return None
    rules = {
        job.name: TargetRules(job.networks, job.source == job.target, job.without_vtpm)
        for job in config.jobs.values()
        if job.target == name
    }
    if isinstance(its.bare_door, ClusterDoor):
        return HyperVReplicas(ClusterTarget(name, its.bare_door, clock), rules)
    return HyperVReplicas(HyperVTarget(name, its.door, clock), rules)
