"""What a dead session left on a host, what checkpoints cost, and whether chains shrank back."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from standby.errors import HostError
from standby.host.hyperv.embedded import parse_instance
from standby.host.hyperv.files import folded
from standby.host.hyperv.machines import HostMachine
from standby.host.hyperv.records import CONVERTING, INTENT, RELEASED, Record, Records
from standby.host.hyperv.reference_points import destroy_points
from standby.host.hyperv.rows import GROWTH
from standby.host.hyperv.snapshots import Snapshots, new_snapshots
from standby.host.hyperv.states import BUSY, Watch

PLANNING = "plan-"
"""What an intent's name begins with that no server records: `job plan` made it."""


def release(watch: Watch, snapshots: Snapshots, records: Records, record: Record) -> list[str]:
    """Give up what the record's checkpoint left; what, by name. A snapshot that was never recorded
    is the only one that came after the intent; of several none is touched, HostError names them."""
    snapshot = record.snapshot
    if record.phase == INTENT:
        state = watch.state(record.machine_id)
        if not state.found:
            raise HostError(watch.host, f"VM {record.machine} is not on the host any more")
        new = new_snapshots(state, record.known)
        if len(new) > 1:
            raise HostError(
                watch.host,
                f"VM {record.machine}: which of the recovery snapshots {', '.join(new)} standby "
                "left is unclear; none was touched",
                "Remove what no backup needs with Get-VMSnapshot and Remove-VMSnapshot",
            )
        snapshot = new[0] if new else ""
    released = []
    if snapshot and snapshots.destroy(record.machine_id, record.machine, snapshot, record):
        released.append(f"recovery snapshot {snapshot} of VM {record.machine}")
    if record.phase == CONVERTING:
        released += _release_points(watch, records, record)
    records.drop(record.intent)
    return released


def _release_points(watch: Watch, records: Records, record: Record) -> list[str]:
    """The reference point of a conversion that nobody saw the end of: the only one that came since
    and is not in another record. No restore point has its ids. One of several stays."""
    state = watch.state(record.machine_id)
    recorded = {item.point for item in records.of_machine(record.machine_id)}
    new = [
        item.instance_id
        for item in state.points
        if item.instance_id not in record.points and item.instance_id not in recorded
    ]
    if len(new) != 1:
        return []
    destroy_points(watch, record.machine_id, new)
    return [f"reference point {new[0]} of VM {record.machine}"]


def release_all(watch: Watch, snapshots: Snapshots, records: Records) -> list[str]:
    """Give up what no server knows of and no living process is at: planned checkpoints, and those
    whose release did not end. What, by name."""
    released: list[str] = []
    for record in records.all():
        is_meant = record.phase == CONVERTING or record.intent.startswith(PLANNING)
        if not is_meant or record.phase == RELEASED or records.is_at(record.intent):
            continue
        if not records.take(record.intent):
            continue
        try:
            released += release(watch, snapshots, records, record)
        finally:
            records.let_go(record.intent)
    return released


# --- growth ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeafGrowth:
    """A file that a VM writes to: its size, the bytes free on its volume; -1 where the host does
    not say."""

    machine_id: str
    path: str
    size: int
    free: int

    def limit(self, growth_max: int, min_free: int) -> str:
        """The limit that is reached, in words, '' while none is; 0 is no limit."""
        if growth_max and self.size >= growth_max:
            return f"{self.path} has {self.size} bytes, checkpoint_max_growth is {growth_max}"
        if min_free and 0 <= self.free < min_free:
            return f"{self.free} bytes are free where {self.path} is, min_free is {min_free}"
        return ""


def growth(watch: Watch, machine_ids: Sequence[str]) -> list[LeafGrowth]:
    """Every file that these VMs write to, in one script; a VM that fails is left out."""
    if not machine_ids:
        return []
    answer = watch.door.run(GROWTH, {"machines": [{"id": item} for item in machine_ids]})
    found = []
    for identity, value in answer.values().items():
        for leaf in value.leaves:
            size = -1
            if leaf.code == 0 and leaf.text:
                size = parse_instance(leaf.text, "Msvm_VirtualHardDiskState").number("FileSize")
            free = -1 if leaf.free is None else leaf.free
            found.append(LeafGrowth(identity, leaf.path, size, free))
    return found


def unmerged(machine: HostMachine, kept: Collection[str], records: Sequence[Record]) -> list[str]:
    """What is wrong with chains that did not get shorter after a checkpoint of ours: the file that
    stands on what it had frozen, which no snapshot of the VM needs any more. `kept` are the files
    that its snapshots name, `folded`; `records` those of the VM. While a merge is under way,
    nothing is wrong."""
    if any(code in BUSY for code in machine.status):
        return []
    alarms = {}
    for record in records:
        frozen = {disk.place: disk.chain[0] for disk in record.disks if disk.chain}
        if record.phase != RELEASED:
            continue
        for disk in machine.disks:
            names = [folded(file.path) for file in disk.chain]
            low = frozen.get(disk.place, "")
            if low in names[1:] and low not in kept:
                over = disk.chain[names.index(low) - 1].path
                alarms[over] = (
                    f"VM {machine.name}, disk {disk.place}: {over} was not merged after the "
                    f"checkpoint of {record.recorded_at[:16]}Z; the chain has {len(names)} layers. "
                    "Does someone hold it open (Get-SmbOpenFile), is its volume full? Hyper-V "
                    "tries again when the VM is started next"
                )
    return list(alarms.values())
