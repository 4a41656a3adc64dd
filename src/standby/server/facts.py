"""Gathering what `plan` decides from: target, repository, tracker and source."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping

from standby.disk.vhdx import default_block_size
from standby.errors import RepositoryError
from standby.model.extent import Extent
from standby.model.job import ReplicationJob
from standby.model.machine import Checkpoint, CheckpointDisk, Machine
from standby.model.replica import ReplicaIdentity
from standby.ports import Host, SampledChanges
from standby.repository import DiskState
from standby.road.points import DiskMatches, TargetDisk, TargetState
from standby.server.config_check import excludes_disk
from standby.server.crew import Crew, RepositoryView
from standby.server.plan import DiskFacts, DiskPlan, PartialFacts, TargetDiskFacts, plan_disk
from standby.server.store import KnownReplica


def repository_key(identity: ReplicaIdentity) -> str:
    """What a replica is called in the repository: its whole identity."""
    return "/".join(
        (identity.installation, identity.source_host, identity.machine_id, identity.job)
    )


def points_lost(
    known: KnownReplica | None, repository: RepositoryView, key: str, newest: str
) -> str:
    """What the target has lost, '' for nothing: it holds fewer points than were seen there last, or
    an older newest one than the repository has the digests of (RULES 6)."""
    recorded: list[str] = []
    with contextlib.suppress(RepositoryError):
        recorded = repository.points(key)
    expected = max([known.newest_point if known is not None else "", *recorded])
    if expected > newest:
        return f"its newest restore point is {newest or 'gone'} where {expected} was known"
    return ""


def converge_repository(repository: RepositoryView, key: str, state: TargetState) -> None:
    """Finish a commit that a kill separated from its point: what is staged for the target's newest
    point, with the very roots that point has, becomes the newest state. Anything staged for a
    point that can no longer come is dropped."""
    staged = {item.disk: item for item in repository.staged(key)}
    if not staged:
        return
    roots = {disk.disk_id: disk.root for disk in state.disks}
    if state.newest and all(item.point_id == state.newest for item in staged.values()):
        with contextlib.suppress(RepositoryError):
            repository.commit(
                key, state.newest, {disk: bytes.fromhex(roots[disk]) for disk in staged}
            )
            return
        repository.discard(key)
        return
    waiting = {item.point_id for item in state.partials if item.point_id > state.newest}
    for disk, item in staged.items():
        if item.point_id not in waiting:
            repository.discard(key, disk)


def disk_plans(
    job: ReplicationJob,
    machine: Machine,
    checkpoint: Checkpoint,
    matches: DiskMatches,
    state: TargetState | None,
    repository: RepositoryView | None,
    key: str,
    source: Host,
    crew: Crew,
    history: Mapping[str, tuple[int, ...]],
    *,
    lost_points: int = 0,
    mapped_places: Collection[str] = (),
    distrust: str = "",
) -> dict[str, DiskPlan]:
    """The plan of every disk of the VM, by controller place. `history` maps a disk's id to the
    changed bytes of its last incremental sessions; `lost_points` are as many as the target once
    had where it has none now; `mapped_places` are those of the VM at the target that is to become
    the first point; `distrust` is why the tracker is not asked, '' where it is."""
    at_target = {disk.disk_id: disk for disk in state.disks} if state else {}
    older = {disk.disk_id: disk for disk in state.older} if state else {}
    newest = state.newest if state else ""
    partials = {
        item.disk_id: item for item in (state.partials if state else ()) if item.point_id > newest
    }
    known = {}
    if repository is not None:
        with contextlib.suppress(RepositoryError):  # damaged: as good as none
            known = repository.states(key)
    gone = {disk.place: disk.id for disk in matches.removed if disk.id in at_target}
    new = {disk.id for disk in matches.new}
    is_first = not newest
    plans = {}
    for disk in checkpoint.disks:
        disk_id = matches.matched[disk.place].id
        held = at_target.get(disk_id) or older.get(disk_id)
        partial = partials.get(disk_id)
        tracked: tuple[Extent, ...] | None = None
        samples: tuple[Extent, ...] = ()
        reason = distrust
        if not distrust:
            tracked, samples, reason = _tracked(
                source, machine, disk, held.tracker_id if held else "", checkpoint
            )
        is_excluded = excludes_disk(job, machine.name, disk.place)
        allocated, blocks = (0, 0) if is_excluded else measured(crew, disk)
        facts = DiskFacts(
            place=disk.place,
            disk_id=disk_id,
            virtual_size=disk.virtual_size,
            logical_sector_size=disk.logical_sector_size,
            allocated=allocated,
            stored_blocks=blocks,
            checkpoint_id=checkpoint.id,
            block_size=default_block_size(disk.virtual_size),
            target=None
            if held is None
            else TargetDiskFacts(
                held.root,
                held.virtual_size,
                held.logical_sector_size,
                held.tracker_id,
                held.point,
            ),
            partial=None
            if partial is None
            else PartialFacts(
                partial.point_id, partial.checkpoint_id, partial.logged_bytes, partial.mark
            ),
            repository_root=_root_of(known.get(disk_id), held),
            tracked=tracked,
            samples=samples,
            tracker_reason=reason,
            is_excluded=is_excluded,
            has_seed=is_first and job.seed.get(machine.name, False),
            mapped_from=job.map[machine.name] if is_first and disk.place in mapped_places else "",
            lost=f"the target lost the {lost_points} restore points it had" if lost_points else "",
            replaces=gone.get(disk.place, "") if disk_id in new else "",
            history=history.get(disk_id, ()),
        )
        plans[disk.place] = plan_disk(facts)
    return plans


def _root_of(known: DiskState | None, held: TargetDisk | None) -> str:
    """The root of the repository's newest state, '' without one. A state of another size cannot
    have the target's root: it is damaged, and as good as none."""
    if known is None or (held is not None and known.virtual_size != held.virtual_size):
        return ""
    return known.root.hex()


def _tracked(
    source: Host, machine: Machine, disk: CheckpointDisk, tracker_id: str, checkpoint: Checkpoint
) -> tuple[tuple[Extent, ...] | None, tuple[Extent, ...], str]:
    """The tracker's ranges, samples of what it calls unchanged, and why there are none: only one
    that counts from the id in the newest point is asked for."""
    if not tracker_id:
        return None, (), "no change tracker"
    answer = source.changes_since(machine, disk.place, tracker_id, checkpoint)
    if answer.ranges is None:
        return None, (), answer.reason
    samples = tuple(answer.samples) if isinstance(answer, SampledChanges) else ()
    return tuple(answer.ranges), samples, ""


def measured(crew: Crew, disk: CheckpointDisk) -> tuple[int, int]:
    """Bytes the source disk stores, and blocks with any of them, by its allocation tables: nothing
    is read."""
    found = crew.ask_source("measure_disk", disk)
    return int(found["allocated"]), int(found["blocks"])
