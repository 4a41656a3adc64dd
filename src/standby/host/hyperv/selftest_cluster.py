"""The self-test's step about clusters: a VM that is a role, found on its node, started, stopped and
taken out again."""

from __future__ import annotations

from standby.host.hyperv.cluster_roles import MEDIUM, NEVER
from standby.host.hyperv.cluster_rows import OFFLINE, ONLINE, UP, VIEW
from standby.host.hyperv.cluster_target import ClusterTarget
from standby.host.hyperv.machines import OFF, RUNNING
from standby.host.hyperv.selftest_vm import MEMORY_MIB, make_folder
from standby.host.hyperv.selftest_walk import NotLookedAt, Walk
from standby.host.hyperv.shape import FirmwareShape, MemoryShape, Shape
from standby.host.hyperv.states import Watch
from standby.host.hyperv.target_plan import Wanted


def cluster(walk: Walk) -> None:
    """A VM without disks as a role of the cluster."""
    door = walk.cluster
    if door is None:
        raise NotLookedAt("the configuration has it as a single host")
    up = door.nodes.up()
    view = door.nodes.anywhere(VIEW, {}).value("cluster")
    walk.tell("states of its nodes", sorted(node.state for node in view.nodes))
    walk.check("nodes that are up", sorted(up), sorted(n.name for n in view.nodes if n.state == UP))
    if not door.nodes.coordinator_of(walk.home):
        raise NotLookedAt("the folder is on no shared volume of the cluster")
    names = [node.name for node in view.nodes]
    walk.check("the coordinator is a node", True, door.nodes.coordinator_of(walk.home) in names)
    folder = make_folder(walk, "role")
    target = ClusterTarget(walk.host, door, walk.clock)
    shape = Shape("", 2, 1, MemoryShape(MEMORY_MIB), FirmwareShape(), stop_action=2)
    wanted = Wanted(walk.key(3), f"{walk.name}-3", folder, shape, {})
    kept = target.keep([wanted])[wanted.key]
    if kept.error is not None:
        raise kept.error
    machine = kept.id
    role = target.roles.look(machine)
    if role is None:
        walk.untried |= {"ClusterGroup", "ClusterResource", "ClusterResourceType", "OfflineAction"}
        walk.miss("the VM as a role", "; ".join(kept.warnings) or "the cluster has none for it")
    else:
        watch = Watch(door, walk.host, walk.clock, poll_s=1.0)
        walk.check("priority of the new role", NEVER, role.priority)
        walk.check("its state", OFFLINE, role.state)
        found = watch.state(machine)
        walk.check("the VM is off (EnabledState)", [OFF], found.enabled)
        walk.check("its node", door.node_of(machine).lower(), role.node.lower())
        target.start(machine)
        role = target.roles.look(machine) or role
        walk.check("state of the started role", ONLINE, role.state)
        walk.check("its priority", MEDIUM, role.priority)
        walk.check("the VM runs (EnabledState)", [RUNNING], watch.state(machine).enabled)
        target.stop(machine, timeout_s=0, force=True)
        role = target.roles.look(machine) or role
        walk.check("state of the stopped role", OFFLINE, role.state)
        walk.check("its priority then", NEVER, role.priority)
        walk.check("the VM is off (EnabledState), not saved", [OFF], watch.state(machine).enabled)
    target.remove(machine)
    walk.check("the role after its removal", None, target.roles.look(machine))
    walk.check("the VM after its removal", "", target.find(wanted.key))
