"""Where a damaged piece of a restore point may still be had: the source VM as it is now, and every
point of the VM's other replicas. Leaves decide whether what they have is what was recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from standby.disk import open_disk
from standby.errors import StandbyError
from standby.model.machine import MachineDisk
from standby.model.replica import ReplicaDisk
from standby.ports import Host, VirtualDisk, inventory_of
from standby.road.lease import WriterLease
from standby.road.points import replicated_disks
from standby.road.repairing import RepairReport, repair
from standby.road.replica import ReplicaFolder
from standby.road.verifying import PointVerdict

Disks = dict[str, VirtualDisk]
"""Open disks of one state of the VM, by the damaged replica's disk ids."""


@contextlib.contextmanager
def source_disks(folder: ReplicaFolder, host: Host, root: Path) -> Iterator[Disks]:
    """The source VM's disks as they are now; those that cannot be opened are left out."""
    record = folder.record()
    with contextlib.ExitStack() as stack:
        found: Disks = {}
        with contextlib.suppress(StandbyError):
            for machine in inventory_of(host).machines:
                if machine.id != record.identity.machine_id:
                    continue
                for item in machine.disks:
                    disk_id = _matching(record.disks, item)
                    with contextlib.suppress(StandbyError):
                        disk = open_disk(root / machine.folder / item.file)
                        stack.callback(disk.close)
                        found[disk_id] = disk
        yield found


@contextlib.contextmanager
def point_disks(folder: ReplicaFolder, other: ReplicaFolder, point_id: str) -> Iterator[Disks]:
    """The disks at a point of another replica of the VM."""
    ours = folder.record().disks
    theirs = {disk.id: disk for disk in other.record().disks}
    with contextlib.ExitStack() as stack:
        found: Disks = {}
        point = other.point(point_id)
        for item in replicated_disks(point):
            with contextlib.suppress(StandbyError, KeyError):
                chain = other.chain_paths(point, item.disk_id)
                disk = open_disk(chain[0], parents=list(chain[1:]))
                stack.callback(disk.close)
                found[_matching(ours, theirs[item.disk_id])] = disk
        yield found


def _matching(known: Sequence[ReplicaDisk], disk: MachineDisk | ReplicaDisk) -> str:
    """The id of the disk among `known` that is this one, '' if none is."""
    for item in known:
        if item.host_id or disk.host_id:
            is_same = item.host_id == disk.host_id
        else:
            is_same = (item.page83, item.place) == (disk.page83, disk.place)
        if is_same:
            return item.id
    return ""


def repaired(
    folder: ReplicaFolder,
    lease: WriterLease,
    verdict: PointVerdict,
    sources: Iterable[Callable[[], contextlib.AbstractContextManager[Disks]]],
) -> RepairReport:
    """Heal one point from the sources in turn; what none of them had right is in the report."""
    report: RepairReport | None = None
    for opened in sources:
        with contextlib.ExitStack() as stack:
            try:
                disks = stack.enter_context(opened())
            except StandbyError:
                continue
            done = repair(folder, lease, verdict, _reader(disks))
        if report is None:
            report = done
        else:
            report.healed_bytes += done.healed_bytes
            report.missing = done.missing
            report.digests |= done.digests
        if not report.missing:
            break
        left = [
            replace(disk, damaged=report.missing[disk.disk_id])
            for disk in verdict.disks
            if disk.disk_id in report.missing
        ]
        verdict = PointVerdict(verdict.point_id, left)
    return report or repair(folder, lease, verdict, _reader({}))


def _reader(disks: Disks) -> Callable[[str, int, int], bytes | None]:
    def read_piece(disk_id: str, offset: int, length: int) -> bytes | None:
        disk = disks.get(disk_id)
        if disk is None or offset + length > disk.virtual_size:
            return None
        data = bytearray(length)
        try:
            disk.read_into(offset, data)
        except StandbyError:
            return None
        return bytes(data)

    return read_piece
