"""Writing a lost commit record again (RULES 16's spirit): from its copy, and only when every disk
of the point was read through it and is what it says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

from standby import killpoints
from standby.files import is_there
from standby.ports import Progress
from standby.road.lease import WriterLease
from standby.road.record_copies import LostRecord, lost_records, with_copies, write_copy
from standby.road.repair_sources import Disks, repaired
from standby.road.repairing import RepairReport
from standby.road.replica import ReplicaFolder, encode_point
from standby.road.verifying import PointVerdict, verify_point


def restored(
    folder: ReplicaFolder,
    lease: WriterLease,
    verdict: PointVerdict,
    sources: Iterable[Callable[[], contextlib.AbstractContextManager[Disks]]],
    progress: Progress | None = None,
) -> RepairReport:
    """Bring the commit record of the verdict's point back; what is damaged of its disks is repaired
    from `sources` first. Every byte is read here, whatever the verdict says: it may be of earlier.

    Repeatable: until the one rename that puts the record there, the point is as lost as before.
    """
    lease.check()
    report = RepairReport(verdict.point_id)
    seen, lost = _lost(folder, verdict.point_id)
    if lost is not None and lost.copy is not None and not all(d.is_ok for d in verdict.disks):
        report = repaired(seen, lease, PointVerdict(verdict.point_id, verdict.disks), sources)
        seen, lost = _lost(folder, verdict.point_id)  # a repair may have made files longer
    if lost is None:
        return report
    if lost.copy is None:
        report.record_problem = lost.without_copy
        return report
    proof = verify_point(seen, lost.point_id, device=True, progress=progress)
    if not proof.is_ok:
        wrong = ", ".join(disk.disk_id for disk in proof.disks if not disk.is_ok)
        report.record_problem = f"nothing proves its copy: {wrong} of the point is damaged"
        if not is_there(folder.point_path(lost.point_id)):
            report.record_problem += (
                f". To go on without the point, move {folder.copy_path(lost.point_id)} away, too, "
                "and start the job with --accept-loss"
            )
        return report
    with folder.guarded(lease.generation):
        lease.write(folder.point_path(lost.point_id), encode_point(lost.copy))
    killpoints.reach("record restored")
    write_copy(folder, lease, lost.copy)
    report.is_record_restored = True
    return report


def _lost(folder: ReplicaFolder, point_id: str) -> tuple[ReplicaFolder, LostRecord | None]:
    """The replica read with the copies of lost records, and what is lost of the point."""
    found = lost_records(folder)
    return with_copies(folder, found), next((i for i in found if i.point_id == point_id), None)
