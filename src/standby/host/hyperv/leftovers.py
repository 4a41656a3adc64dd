"""What a dead session left on a host, what checkpoints cost, and whether chains shrank back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from standby.errors import HostError
from standby.host.hyperv.embedded import parse_instance
from standby.host.hyperv.machines import HostMachine
from standby.host.hyperv.records import CONVERTING, INTENT, RELEASED, Record, Records
from standby.host.hyperv.rows import GROWTH
from standby.host.hyperv.snapshots import Snapshots, new_snapshots
from standby.host.hyperv.states import Watch

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
    was_there = False
    if snapshot:
        was_there = snapshots.destroy(record.machine_id, record.machine, snapshot)
    records.drop(record.intent)
    return [f"recovery snapshot {snapshot} of VM {record.machine}"] if was_there else []


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


def depth_alarms(before: Mapping[str, int], machine: HostMachine) -> list[str]:
    """What is wrong with chains that are longer than before the checkpoint (`before`: layers by
    controller place), naming the file that was not merged."""
    return [
        f"VM {machine.name}, disk {disk.place}: the chain has {len(disk.chain)} layers, "
        f"{before[disk.place]} before the checkpoint: {disk.file.path} was not merged. Is it held "
        "open (Get-SmbOpenFile), is its volume full?"
        for disk in machine.disks
        if disk.place in before and len(disk.chain) > before[disk.place]
    ]
