"""Reference points: what a recovery snapshot becomes when it is given up (RULES 10), and which
change-tracking id is whose.

    convert done        the ids go into the restore point of that very state
    convert failed      the snapshot is destroyed; the point has no id, and says why
    convert unfinished  the point has no id, and says why; what comes of it is found later
    snapshot gone       before we began: the source changed. After: the new reference point is ours
"""

from __future__ import annotations

from dataclasses import dataclass

from standby.errors import (
    HostDeadline,
    HostShellLost,
    ScriptFailed,
)
from standby.host.hyperv.open_files import Closing
from standby.host.hyperv.pacing import volumes_of
from standby.host.hyperv.records import CONVERTING, Record, RecordedDisk
from standby.host.hyperv.rows import CONVERT, DESTROY_POINTS, Converted, Point
from standby.host.hyperv.snapshots import RETRY_PAUSES_S, SCRIPT_WAIT_S, Waits
from standby.host.hyperv.states import (
    Watch,
    is_running,
    is_sharing_violation,
    operation,
    recovery_snapshots,
)
from standby.host.hyperv.trust import RCT, TrackedDisk


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a conversion came to. `state`: 'converted' (`point`), 'failed', 'unfinished' (both:
    `why`), 'gone' (the snapshot was not there when it was begun)."""

    state: str
    point: Point | None = None
    why: str = ""


def convert(watch: Watch, record: Record, waits: Waits, closing: Closing | None = None) -> Outcome:
    """Convert the record's snapshot. The record's phase says whether it was begun before. Files
    that are open are waited for, then closed by `closing`."""
    pauses = list(RETRY_PAUSES_S)
    until = watch.clock.monotonic() + waits.job_s
    while True:
        try:
            answer = _convert(watch, record)
        except (HostDeadline, HostShellLost):
            return _adopted(watch, record, "", until)
        except ScriptFailed as exc:
            if is_sharing_violation(exc) and pauses:
                if closing is not None:
                    closing.after_violation(record, len(RETRY_PAUSES_S) - len(pauses))
                watch.clock.sleep(pauses.pop(0))
                continue
            return Outcome("failed", why=f"the host could not convert the checkpoint: {exc}")
        if answer.state == "gone" and record.phase != CONVERTING:
            return Outcome("gone")
        if answer.state == "done" and len(answer.points) == 1:
            return Outcome("converted", answer.points[0])
        return _adopted(watch, record, answer.job or "", until)


def _convert(watch: Watch, record: Record) -> Converted:
    files = [name for disk in record.disks for name in disk.chain[:1]]
    one = {
        "id": record.machine_id,
        "snapshot": record.snapshot,
        "wait_s": SCRIPT_WAIT_S,
        "volumes": sorted(volumes_of(files)),
    }
    return watch.door.run(CONVERT, {"machines": [one]}).value(record.machine_id)


def _adopted(watch: Watch, record: Record, job: str, until: float) -> Outcome:
    """What came of a conversion that was not seen to its end."""
    while True:
        state = watch.existing(record.machine_id, record.machine, job)
        ids = [item.instance_id for item in recovery_snapshots(state)]
        if record.snapshot not in ids and not any(is_running(item) for item in state.job):
            break
        if not any(is_running(item) for item in state.job) and not operation(state):
            return Outcome("failed", why="the host's job to convert the checkpoint came to nothing")
        if watch.clock.monotonic() >= until:
            return Outcome("unfinished", why="the host was still converting the checkpoint")
        watch.clock.sleep(watch.poll_s)
    new = [item for item in state.points if item.instance_id not in record.points]
    if len(new) == 1:
        return Outcome("converted", new[0])
    if new:
        names = ", ".join(item.instance_id for item in new)
        return Outcome(
            "unfinished", why=f"which of the reference points {names} is ours is unclear"
        )
    return Outcome("unfinished", why="the checkpoint is gone and left no reference point")


def tracking_ids(
    point: Point, disks: tuple[RecordedDisk, ...]
) -> tuple[dict[str, str], dict[str, str]]:
    """The point's RCT ids, and why there is none, by controller place. A disk is known by its GUID:
    the point names media, a medium of the VM names a file, the file has the GUID; the order of the
    lists and paths count for nothing, and what is ambiguous is not tracked."""
    ids = point.resilient_change_tracking_identifiers or []
    media = point.virtual_disk_identifiers or []
    if point.reference_point_type != RCT or len(ids) != len(media):
        why = f"the reference point {point.instance_id} holds no tracking ids"
        return {}, {disk.place: why for disk in disks}
    guids = {disk.storage.lower(): disk.disk_id for disk in disks}
    found: dict[str, list[str]] = {}
    for medium, tracking in zip(media, ids, strict=True):
        guid = guids.get(medium.lower(), "")
        if guid and tracking:
            found.setdefault(guid, []).append(tracking)
    named: dict[str, str] = {}
    missing: dict[str, str] = {}
    for disk in disks:
        of_disk = found.get(disk.disk_id, [])
        if len(of_disk) == 1 and sum(item.disk_id == disk.disk_id for item in disks) == 1:
            named[disk.place] = of_disk[0]
        elif not of_disk:
            missing[disk.place] = f"the reference point {point.instance_id} does not name the disk"
        else:
            missing[disk.place] = f"disks of the VM share the id {disk.disk_id}"
    return named, missing


def trackers_of(record: Record, outcome: Outcome) -> dict[str, str]:
    """The tracker ids that the restore point of the record's state gets, by controller place."""
    if outcome.point is None:
        return {disk.place: TrackedDisk(why=outcome.why).text() for disk in record.disks}
    named, missing = tracking_ids(outcome.point, record.disks)
    trackers = {}
    for disk in record.disks:
        tracked = TrackedDisk(
            # a disk without an id names the point too: it is given up with the others
            why=missing.get(disk.place, ""),
            point=outcome.point.instance_id,
            place=disk.place,
            ids=named,
            disk_id=disk.disk_id,
            size=disk.size,
            chain=disk.chain,
            applied=record.applied,
            audited=record.audited.get(disk.place, record.recorded_at),
        )
        trackers[disk.place] = tracked.text()
    return trackers


def destroy_points(watch: Watch, machine_id: str, points: list[str]) -> list[str]:
    """Destroy these reference points of the VM and no other; those still being destroyed. One that
    is gone is well."""
    if not points:
        return []
    one = {"id": machine_id, "points": points, "wait_s": SCRIPT_WAIT_S}
    try:
        return watch.door.run(DESTROY_POINTS, {"machines": [one]}).value(machine_id).left
    except (HostDeadline, HostShellLost):
        return points
