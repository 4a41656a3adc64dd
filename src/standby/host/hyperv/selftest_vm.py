"""The self-test's steps that make what the others work with: folders, disk files, a VM."""

from __future__ import annotations

import msgspec

from standby.errors import HostError
from standby.host.hyperv.files import DIFFERENCING, VHDX, folded
from standby.host.hyperv.machines import OFF, PAUSED, RUNNING, HostMachine, power_of, version_of
from standby.host.hyperv.selftest_boot import (
    DISK_SIZE,
    SECTOR,
    boot_sector,
    count_of,
    counting_sector,
    missing_copies,
)
from standby.host.hyperv.selftest_rows import MAKE_FOLDERS, NEW_DISKS
from standby.host.hyperv.selftest_walk import BOOT_S, NotLookedAt, Walk
from standby.host.hyperv.shape import (
    AdapterShape,
    ControllerShape,
    FirmwareShape,
    MemoryShape,
    Shape,
)
from standby.host.hyperv.snapshots import Snapshots
from standby.host.hyperv.states import Watch, recovery_snapshots
from standby.host.hyperv.target import HyperVTarget
from standby.host.hyperv.target_plan import DISABLED, NOTHING, Wanted, found_replicas
from standby.host.hyperv.target_power import COMPRESSED, ENCRYPTED, SPARSE
from standby.host.hyperv.target_rows import CHANGE_STATE, FILE_STATES, VERSIONS
from standby.model.machine import PowerState

DYNAMIC = 3
"""Msvm_VirtualHardDiskSettingData.Type."""
TURN_OFF = 2
PAUSE = 9
"""Msvm_ComputerSystem.RequestStateChange."""
_PASS_THROUGH = (
    "Msvm_ResourceAllocationSettingData.ResourceSubType = Microsoft:Hyper-V:Physical Disk Drive"
)
"""A line of assumed.toml: the walk takes no disk of the host's."""
PLACE = "ide:0:0"
"""Of the guest's disk: what its firmware starts from."""
IDLE_S = 300.0
MEMORY_MIB = 256
MAC = "00155DFE5E01"
LEGACY_MAC = "00155DFE5E04"
IDENTIFIER = "{5e1f7e57-0000-4000-8000-000000000001}"


def first_sectors() -> dict[int, bytes]:
    """A disk with the guest that writes."""
    return {0: boot_sector(), SECTOR: counting_sector(0, "standby selftest")}


def make_folder(walk: Walk, *names: str) -> str:
    """A folder of the test, made on the host."""
    path = "\\".join((walk.home, *names))
    walk.door.run(MAKE_FOLDERS, {"folders": [{"id": path, "path": path}]}).value(path)
    return path


def files(walk: Walk) -> None:
    """Disk files that standby wrote, as the host describes them."""
    folder = make_folder(walk, "d0")
    if walk.disks is not None and not walk.check(
        f"the proxy sees the folder ({walk.disks.seen_by})",
        "yes",
        "yes" if walk.disks.is_folder(folder) else "no",
    ):
        walk.disks = None
        walk.missing_disks = "the proxy does not see what the host makes in the folder"
    path = f"{folder}\\base.vhdx"
    disks = walk.needed_disks("disk files that standby writes")
    if disks is None:
        made = {"files": [{"id": path, "path": path, "size": DISK_SIZE}]}
        walk.door.run(NEW_DISKS, made).value(path)
        page83 = ""
    else:
        page83 = disks.make(path, DISK_SIZE, first_sectors())
    (described,) = walk.described(path)
    walk.check("format", VHDX, described.format)
    walk.check("type (3 dynamic)", DYNAMIC, described.type)
    walk.check("size", DISK_SIZE, described.virtual_size)
    walk.check("sector size", 512, described.logical_sector_size)
    if disks is not None:
        walk.check("id of the virtual disk", page83, described.disk_id)
        parent, child = f"{folder}\\parent.vhdx", f"{folder}\\child.vhdx"
        page83 = disks.make(parent, DISK_SIZE, {})
        disks.child(child, parent, {})
        chain = walk.described(child)
        walk.check("type of a child (4 differencing)", DIFFERENCING, chain[0].type)
        walk.check("its parent", [folded(parent)], [folded(item.path) for item in chain[1:]])
        walk.check("its id", page83, chain[0].disk_id)
        asked = {"files": [{"id": path, "path": path}]}
        state = walk.door.run(FILE_STATES, asked).value(path)
        hindering = state.attributes & (SPARSE | COMPRESSED | ENCRYPTED)
        walk.check("attributes that keep a VM from starting", 0, hindering)
    walk.disk = path


def shape() -> Shape:
    """The VM of the test: the smallest that starts, off every network."""
    adapters = (
        AdapterShape("selftest", mac=MAC, is_static=True, identifiers=(IDENTIFIER,)),
        AdapterShape("legacy", mac=LEGACY_MAC, is_static=True, is_legacy=True),
    )
    return Shape(
        version="",
        generation=1,
        processors=1,
        memory=MemoryShape(MEMORY_MIB),
        firmware=FirmwareShape(chassis_asset_tag="standby selftest"),
        controllers=(ControllerShape("ide", 0), ControllerShape("ide", 1)),
        adapters=adapters,
        stop_action=TURN_OFF,
    )


def plain_adapter(adapter: AdapterShape) -> AdapterShape:
    """The adapter, its GUIDs in lower case: what counts is which they are."""
    return msgspec.structs.replace(
        adapter, identifiers=tuple(text.lower() for text in adapter.identifiers)
    )


def embedded(walk: Walk) -> None:
    """A VM made of embedded instances, as replica VMs are."""
    if not walk.disk:
        walk.miss("a VM", "it has no disk file")
        return
    wanted = Wanted(walk.key(1), walk.name, walk.home, shape(), {PLACE: walk.disk})
    kept = walk.target.keep([wanted])[wanted.key]
    if kept.error is not None:
        raise kept.error
    walk.machine_id = kept.id
    walk.check("the VM was made", "yes", "yes" if kept.is_new else "no")
    again = walk.target.keep([wanted])[wanted.key]
    walk.check("the same VM when asked again", kept.id, again.id)
    walk.check("nothing to change then", "yes", "no" if again.is_new or again.is_changed else "yes")
    rows = walk.target.read_rows()
    (found,) = [item for item in found_replicas(rows) if item.id == kept.id]
    walk.check("its name", walk.name, found.name)
    walk.check("its note", wanted.note, found.note)


def inventory(walk: Walk) -> None:
    """The VM with each property as it was made."""
    found = walk.machine()
    wanted, came = shape(), found.shape
    walk.check("folder", folded(walk.home), folded(found.folder))
    walk.check("EnabledState", OFF, found.enabled_state)
    walk.check("generation", wanted.generation, came.generation)
    walk.check("processors", wanted.processors, came.processors)
    walk.check("memory in MiB", MEMORY_MIB, came.memory.startup)
    walk.check("dynamic memory", False, came.memory.is_dynamic)
    walk.check(
        "chassis asset tag", wanted.firmware.chassis_asset_tag, came.firmware.chassis_asset_tag
    )
    walk.check("start action (2 nothing)", NOTHING, came.start_action)
    walk.check("stop action (2 turn off)", TURN_OFF, came.stop_action)
    walk.check("checkpoints (2 disabled)", DISABLED, came.checkpoint_type)
    supported = walk.door.run(VERSIONS, {}).value("host").versions
    is_supported = came.version in supported
    walk.check("its configuration version is one that the host runs", True, is_supported)
    walk.tell("configuration versions that the host runs", sorted(supported, key=version_of))
    walk.tell("configuration version of a new VM", came.version)
    there = {item.name: item for item in came.adapters}
    walk.check("adapters", sorted(item.name for item in wanted.adapters), sorted(there))
    for adapter in wanted.adapters:
        if adapter.name in there:
            one = plain_adapter(there[adapter.name])
            if adapter.is_legacy:  # the host gave it ids of its own
                one = msgspec.structs.replace(one, identifiers=())
            walk.check(f"adapter {adapter.name}", plain_adapter(adapter), one)
    walk.check(
        "controllers", [c.kind for c in wanted.controllers], [c.kind for c in came.controllers]
    )
    walk.check("places of disks", [PLACE], [disk.place for disk in found.disks])
    named = [folded(disk.file.path) for disk in found.disks]
    walk.check("file of the disk", [folded(walk.disk)], named)
    walk.untried.add(_PASS_THROUGH)
    walk.check("what keeps a job from it", [], [str(item) for item in found.refusals])
    walk.start(found.id)
    walk.target.change(CHANGE_STATE, found.id, {"wanted": PAUSE})
    state = walk.enabled_state(found.id)
    walk.check("a paused VM is known as such", PowerState.PAUSED, power_of(state))
    walk.tell("EnabledState of a paused VM", state)
    if state != PAUSED:
        walk.untried.add(f"Msvm_ComputerSystem.EnabledState = {PAUSED}")
    walk.turn_off(found.id)


def at_rest(watch: Watch, target: HyperVTarget, machine: str, name: str) -> None:
    """Turn a VM of the test off and destroy its recovery snapshots, whatever state it is in. One
    that is merging can neither be stopped nor removed: that is waited for."""
    watch.idle(machine, name, IDLE_S)
    target.stop(machine, timeout_s=0, force=True)
    for item in recovery_snapshots(watch.idle(machine, name, IDLE_S)):
        Snapshots(watch).destroy(machine, name, item.instance_id)
    watch.idle(machine, name, IDLE_S)


def rested(walk: Walk) -> HostMachine:
    """The VM with the guest, off, without snapshots, on its own disk: whatever a step before did
    not bring to an end. NotLookedAt where that cannot be."""
    found = walk.machine()
    at_rest(walk.watch, walk.target, found.id, found.name)
    found = walk.machine()
    files = [folded(file.path) for disk in found.disks for file in disk.chain[:1]]
    if files != [folded(walk.disk)]:
        if any(file.endswith(".avhdx") for file in files):
            raise NotLookedAt(f"the VM stands on {', '.join(files)} since an earlier step")
        walk.target.attach(found.id, {PLACE: walk.disk})
    return found


def boot(walk: Walk) -> None:
    """The VM starts from a disk that standby wrote, and its guest writes to it."""
    disks = walk.needed_disks("a VM that starts from a disk of standby's")
    if disks is not None:
        rested(walk)
        booted(walk, "the disk that standby wrote", walk.disk)


def booted(walk: Walk, what: str, path: str) -> None:
    """Start the VM, whose disk is at `path`, let its guest write, turn it off, compare."""
    disks = walk.disks
    if disks is None:
        raise HostError(walk.host, walk.missing_disks)
    machine = walk.machine()
    before = count_of(disks.content(path))
    walk.start(machine.id)
    walk.check(f"{what}: the VM runs (EnabledState)", RUNNING, walk.enabled_state(machine.id))
    walk.clock.sleep(BOOT_S)
    walk.turn_off(machine.id)
    walk.watch.idle(machine.id, machine.name, IDLE_S)
    content = disks.content(path)
    count = count_of(content)
    walk.check(f"{what}: its guest has written", True, count > before)
    missing = [item for item in missing_copies(content, before + 1) if item != count]
    walk.check(f"{what}: writes that are missing", [], missing)
