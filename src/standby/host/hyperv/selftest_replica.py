"""The self-test's steps about replica VMs: made, changed, attached, started, stopped and removed as
a job does it; chains that standby makes and merges, started from."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from standby.errors import HostCallFailed, ScriptFailed
from standby.host.hyperv import selftest_vm
from standby.host.hyperv.files import folded
from standby.host.hyperv.inventory import read_inventory
from standby.host.hyperv.machines import OFF, RUNNING
from standby.host.hyperv.selftest_boot import DISK_SIZE, SECTOR
from standby.host.hyperv.selftest_rows import NEW_DISKS
from standby.host.hyperv.selftest_vm import (
    MEMORY_MIB,
    booted,
    first_sectors,
    make_folder,
    plain_adapter,
    rested,
)
from standby.host.hyperv.selftest_walk import SeenDisks, Walk
from standby.host.hyperv.shape import (
    AdapterShape,
    ControllerShape,
    FirmwareShape,
    MemoryShape,
    Shape,
)
from standby.host.hyperv.target_plan import DISABLED, NOTHING, Wanted, switches_of
from standby.units import MiB

CHAIN = 30
"""Files of the longest chain that is tried."""
PRODUCTION = 3
VLAN = 7
PLACE = "scsi:1:0"
LOADER = (3, "standby selftest", r"\HD(1,GPT,5e1f7e57-0000-4000-8000-00000000000b)\shimx64.efi", "")


# --- a replica VM --------------------------------------------------------------------------------


def replica(walk: Walk) -> None:
    """A replica VM of generation 2, from its making to its removal."""
    folder = make_folder(walk, "replica", "d0")
    base, ready, older = (f"{folder}\\{name}.vhdx" for name in ("base", "ready", "older"))
    _make_layers(walk, base, ready, older)
    walk.untried.add("VMInternalNetworkAdapter")  # the host's own; the walk asks for a VM's
    switch = min(switches_of(walk.target.read_rows()), default="")
    if not switch:
        walk.miss("an adapter on a switch", "the host has none")
    wanted = _wanted(walk, ready, switch)
    machine = _kept(walk, wanted, "made")
    walk.check("room beside its folder is told", True, walk.target.free_bytes(wanted.folder) > 0)
    _compared(walk, machine, wanted.shape)
    # From here on it hangs on no network: it is started.
    wanted = _wanted(walk, ready, "")
    _kept(walk, wanted, "taken off the network")
    _compared(walk, machine, wanted.shape)
    _attached(walk, wanted, machine, older)
    _attached(walk, wanted, machine, ready)
    _renewed(walk, base, ready)
    heartbeat = walk.target.start(machine, [ready, base])
    walk.check("it runs (EnabledState)", RUNNING, walk.enabled_state(machine))
    walk.tell("heartbeat of a VM without a guest", heartbeat.value)
    walk.target.stop(machine, timeout_s=0, force=True)
    walk.check("it is off again (EnabledState)", OFF, walk.enabled_state(machine))
    seen = walk.target.look({wanted.key: wanted.disks})[wanted.key]
    walk.check("what somebody changed at it by hand", [], seen.findings)
    restored = msgspec.structs.replace(wanted.shape, checkpoint_type=PRODUCTION, start_action=3)
    walk.target.restore_automatic(machine, restored)
    came = _shape(walk, machine)
    walk.check("its source's checkpoints (3 production)", PRODUCTION, came.checkpoint_type)
    walk.check("its source's start action (3 if it ran)", 3, came.start_action)
    walk.target.remove(machine)
    walk.check("the VM after its removal", "", walk.target.find(wanted.key))
    walk.check("files of its chain that are still there", 2, len(walk.described(ready)))


def _make_layers(walk: Walk, base: str, ready: str, older: str) -> None:
    disks = walk.needed_disks("ready layers that standby writes")
    if disks is not None:
        disks.make(base, DISK_SIZE, {0: b"standby selftest".ljust(SECTOR, b".")})
        for path in (ready, older):
            disks.child(path, base, {})
        return
    made = {"files": [{"id": base, "path": base, "size": DISK_SIZE}]}
    walk.door.run(NEW_DISKS, made).value(base)
    walk.target.new_children({ready: base, older: base})


def _wanted(walk: Walk, ready: str, switch: str) -> Wanted:
    adapters = (
        AdapterShape("first", mac="00155DFE5E02", is_static=True, identifiers=(_identifier(2),)),
        AdapterShape(
            "second",
            switch=switch,
            mac="00155DFE5E03",
            is_static=True,
            is_connected=bool(switch),
            vlan_mode=1 if switch else 0,
            vlan=VLAN if switch else 0,
            identifiers=(_identifier(3),),
        ),
    )
    shape = Shape(
        version="",
        generation=2,
        processors=2,
        memory=MemoryShape(MEMORY_MIB, MEMORY_MIB, 2 * MEMORY_MIB, is_dynamic=True),
        firmware=FirmwareShape(
            bios_guid=_identifier(9).upper(),
            bios_serial="5E1F-1",
            base_board_serial="5E1F-2",
            chassis_serial="5E1F-3",
            chassis_asset_tag="standby selftest",
            boot=(LOADER,),
        ),
        controllers=(
            ControllerShape("scsi", 0, (_identifier(4),)),
            ControllerShape("scsi", 1, (_identifier(5),)),
        ),
        adapters=adapters,
        stop_action=2,
    )
    return Wanted(walk.key(2), f"{walk.name}-2", f"{walk.home}\\replica", shape, {PLACE: ready})


def _identifier(number: int) -> str:
    return f"{{5e1f7e57-0000-4000-8000-{number:012x}}}"


def _kept(walk: Walk, wanted: Wanted, what: str) -> str:
    """Keep the VM, and once more, when nothing is to be changed; its id."""
    kept = walk.target.keep([wanted])[wanted.key]
    if kept.error is not None:
        raise kept.error
    walk.check(f"warnings when it is {what}", [], kept.warnings)
    again = walk.target.keep([wanted])[wanted.key]
    is_same = not (again.error or again.is_new or again.is_changed) and again.id == kept.id
    walk.check(f"all is as wanted when it was {what}", True, is_same)
    return kept.id


def _shape(walk: Walk, machine: str) -> Shape:
    found = walk.target.found(machine)
    return found.shape


def _compared(walk: Walk, machine: str, wanted: Shape) -> None:
    """What keep made, read back."""
    came = _shape(walk, machine)
    walk.check("processors", wanted.processors, came.processors)
    walk.check("memory", wanted.memory, came.memory)
    walk.check("start action (2 nothing)", NOTHING, came.start_action)
    walk.check("checkpoints (2 disabled)", DISABLED, came.checkpoint_type)
    for name in ("bios_serial", "base_board_serial", "chassis_serial", "chassis_asset_tag"):
        came_text = getattr(came.firmware, name)
        walk.check(name, getattr(wanted.firmware, name), came_text)
    walk.check("BIOS GUID", wanted.firmware.bios_guid, came.firmware.bios_guid.upper())
    walk.check("boot entries: the first", LOADER, (came.firmware.boot or ("none",))[0])
    scsi = [(item.kind, _lower(item.identifiers)) for item in came.controllers]
    expected = [(item.kind, _lower(item.identifiers)) for item in wanted.controllers]
    walk.check("controllers", expected, scsi)
    there = {item.name: item for item in came.adapters}
    walk.check("adapters", sorted(item.name for item in wanted.adapters), sorted(there))
    for adapter in wanted.adapters:
        if adapter.name in there:
            walk.check(
                f"adapter {adapter.name}",
                plain_adapter(adapter),
                plain_adapter(there[adapter.name]),
            )


def _lower(texts: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text.lower() for text in texts)


def _attached(walk: Walk, wanted: Wanted, machine: str, path: str) -> None:
    walk.target.attach(machine, {PLACE: path})
    seen = walk.target.look({wanted.key: {PLACE: path}})[wanted.key]
    walk.check(f"attached to {path.rpartition(chr(92))[2]}", [], seen.findings)


def _renewed(walk: Walk, base: str, ready: str) -> None:
    """A new ready layer is put over the old one, as each cycle does it."""
    disks = walk.needed_disks("a ready layer that is renamed over the one attached")
    if disks is None:
        return
    data = b"renewed".ljust(SECTOR, b".")
    new = ready.replace("ready.vhdx", "ready.1.partial.vhdx")
    disks.child(new, base, {MiB: data})
    disks.rename(new, ready)
    walk.check("what the host reads is the new one", data, disks.content(ready)[MiB:][:SECTOR])
    chain = walk.described(ready)
    walk.check("its parent", [folded(base)], [folded(item.path) for item in chain[1:]])


# --- chains --------------------------------------------------------------------------------------


def merge(walk: Walk) -> None:
    """A chain of which the oldest two files become one (RULES 15), before and after a start."""
    disks = walk.needed_disks("chains that standby merges")
    if disks is None:
        return
    folder = make_folder(walk, "merge")
    base, old, new, ready = (f"{folder}\\{n}.vhdx" for n in ("base", "old", "new", "ready"))
    marks = {40 * MiB: b"old".ljust(SECTOR, b"."), 41 * MiB: b"new".ljust(SECTOR, b".")}
    disks.make(base, DISK_SIZE, first_sectors())
    disks.child(old, base, {40 * MiB: marks[40 * MiB]})
    disks.child(new, old, {41 * MiB: marks[41 * MiB]})
    disks.child(ready, new, {})
    _from(walk, ready, 4, "before the merge")
    before = disks.content(ready)
    disks.merge(base, old, new)
    walk.check("the disk reads the same after the merge", True, before == disks.content(ready))
    _from(walk, ready, 3, "after the merge")
    _marked(walk, disks, ready, marks)


def chain(walk: Walk) -> None:
    """As many restore points as a replica may have: a chain of that many files."""
    disks = walk.needed_disks(f"a chain of {CHAIN} files")
    if disks is None:
        return
    folder = make_folder(walk, "chain")
    below = f"{folder}\\base.vhdx"
    disks.make(below, DISK_SIZE, first_sectors())
    marks = {}
    for number in range(1, CHAIN):
        path = f"{folder}\\{number:02}.vhdx"
        at = 40 * MiB + number * SECTOR
        marks[at] = f"layer {number}".encode("ascii").ljust(SECTOR, b".")
        disks.child(path, below, {at: marks[at]})
        below = path
    _from(walk, below, CHAIN, f"a chain of {CHAIN}")
    _marked(walk, disks, below, marks)


def orphan(walk: Walk) -> None:
    """A disk whose parent is another file than the one that it was made over."""
    disks = walk.needed_disks("a chain that does not hang together")
    if disks is None:
        return
    folder = make_folder(walk, "orphan")
    base, other, top = (f"{folder}\\{name}.vhdx" for name in ("base", "other", "top"))
    disks.make(base, DISK_SIZE, {})
    disks.child(top, base, {})
    machine = rested(walk).id
    walk.target.attach(machine, {selftest_vm.PLACE: top})
    disks.make(other, DISK_SIZE, {})
    disks.rename(other, base)
    came = ""
    try:
        walk.start(machine)
    except HostCallFailed as exc:
        came = exc.problem if isinstance(exc, ScriptFailed) else str(exc)
    walk.check("the start is refused", True, bool(came))
    if came:
        walk.tell("why, in the host's words", came)
    state = walk.enabled_state(machine)
    walk.check("the VM is off (EnabledState)", OFF, state)
    if state != OFF:
        walk.turn_off(machine)
    walk.target.attach(machine, {selftest_vm.PLACE: walk.disk})


def _from(walk: Walk, path: str, length: int, what: str) -> None:
    """Describe the chain, attach the guest's VM to it, start it."""
    walk.check(f"{what}: files of the chain", length, len(walk.described(path)))
    machine = rested(walk).id
    walk.target.attach(machine, {selftest_vm.PLACE: path})
    found = read_inventory(walk.door).machine(machine)
    lengths = [len(disk.chain) for disk in found.disks] if found is not None else []
    walk.check(f"{what}: files of the VM's disk", [length], lengths)
    booted(walk, what, path)
    walk.target.attach(machine, {selftest_vm.PLACE: walk.disk})


def _marked(walk: Walk, disks: SeenDisks, path: str, marks: Mapping[int, bytes]) -> None:
    content = disks.content(path)
    lost = [at for at, data in marks.items() if content[at : at + len(data)] != data]
    walk.check("layers whose data the disk lacks", [], lost)
