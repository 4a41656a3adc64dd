"""Before a VM's transfer: its replica opened, its checkpoint taken, each disk planned."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from typing import Any

import msgspec

from standby import killpoints
from standby.clock import new_token
from standby.disk.vhdx import default_block_size
from standby.errors import (
    CheckpointLimit,
    DiskFull,
    FilesHeldOpen,
    IllegalTransition,
    ReplicaBusy,
    ReplicaMissing,
    RepositoryError,
    UnknownName,
)
from standby.model.extent import Extent
from standby.model.machine import Checkpoint, CheckpointDisk
from standby.model.replica import (
    Action,
    legal_actions,
    legal_commands,
)
from standby.model.report import DiskReport
from standby.road.naming import new_point_id
from standby.road.points import DiskMatches, TargetState, match_disks
from standby.server import facts
from standby.server.crew import DiskTask, RepositoryView, replica_name
from standby.server.machine_work import MachineWork
from standby.server.plan import DiskPlan, Mode
from standby.server.store import TRACKER
from standby.server.store.tables import KnownReplica
from standby.server.waits import LOOK_S
from standby.units import format_bytes


class Preparing(MachineWork):
    """Prepare, checkpoint and plan; and the release, which ends what the checkpoint began."""

    # --- prepare -----------------------------------------------------------------------------

    def _prepare(self, repository: RepositoryView) -> TargetState:
        """Open the replica as its one writer; finish what a killed session left."""
        context = self.context
        known = context.store.known_replica(self._identity)
        is_known = known is not None and known.points > 0
        with contextlib.suppress(RepositoryError):
            is_known = is_known or bool(repository.points(self.key))
        try:
            found = self._open_replica(known, is_known)
        except ReplicaBusy as exc:
            if not self._is_left_behind(exc.session) or not self.crew.end_left(exc.session):
                raise
            found = self._open_replica(known, is_known)
        self._path = found["path"]
        self.report.replica = replica_name(self._path)
        self.report.warnings.extend(found["warnings"])
        state = msgspec.convert(found["state"], TargetState)
        if known is not None and not state.points:
            self._lost_points = known.points
        lost = facts.points_lost(known, repository, self.key, state.newest)
        if not lost and known is not None and len(state.points) < known.points:
            lost = f"{len(state.points)} restore points where {known.points} were known"
        if lost and not context.accept_loss:
            raise ReplicaMissing(self.report.replica, self._path, lost)
        if lost:
            repository.forget(self.key)  # or it would say the same next time
        if Action.SESSION not in legal_actions(state.state):
            raise IllegalTransition(
                self.report.replica,
                state.state.value,
                Action.SESSION.value,
                legal_commands(state.state, self.report.replica, context.job.name),
            )
        facts.converge_repository(repository, self.key, state)
        self._remember(state.state, list(state.points))
        if not state.newest and self.machine.name in context.job.map:
            state = self._map(state)
        return state

    def _open_replica(self, known: KnownReplica | None, is_known: bool) -> Any:
        context = self.context
        return self.crew.target.call(
            "open_replica",
            root=self.crew.target_root,
            identity=msgspec.to_builtins(self._identity),
            wanted=self.machine.name + context.job.suffix,
            session=self.crew.name or context.session,  # by which its movers end it
            take_over=context.take_over,
            must_exist=not context.accept_loss and is_known,
            expected=known.path if known is not None else self.crew.target_root,
            **({"host_root": self.crew.host_root} if self.crew.host_root else {}),
        )

    def _is_left_behind(self, crew: str) -> bool:
        """Whether that crew's session was killed, as far as this job's one session can tell: its
        movers may not have noticed, or keep what it opened for when its server is back."""
        if not self.context.may_join or not crew or crew == self.crew.name:
            return False
        session = crew.split("/")[0]
        try:
            report = self.context.store.session(session)
        except UnknownName:
            return False
        if report.job != self.context.job.name:
            return False
        return bool(report.ended_at) or session == self.context.session

    def _map(self, state: TargetState) -> TargetState:
        """Make the disks of an existing VM at the target the first point (RULES 16)."""
        matches = match_disks(self.report.replica, state.known_disks, self.machine.disks)
        self._register(matches)
        found = self.crew.target.call(
            "map_machine",
            path=self._path,
            folder=self.context.job.map[self.machine.name],
        )
        self.report.warnings.extend(found["warnings"])
        self._is_mapped = True
        state = msgspec.convert(found["state"], TargetState)
        self._remember(state.state, list(state.points))
        return state

    def _register(self, matches: DiskMatches) -> None:
        """Have the target keep the disks' ids before anything carries one (RULES 1)."""
        self.crew.target.call(
            "register_disks", path=self._path, disks=msgspec.to_builtins(matches.known)
        )

    def _take_checkpoint(self) -> Checkpoint:
        """Record the intent, then fix the VM's disks (RULES 10)."""
        context = self.context
        intent = context.store.record_intent(
            context.source.name, self.machine.id, context.session, context.clock.now().isoformat()
        )
        killpoints.reach("checkpoint intent")
        self._intent = intent
        self._checkpoint = context.source.take_checkpoint(self.machine, intent)
        self._checkpoint_started = context.clock.monotonic()
        self._keep_state_files()
        killpoints.reach("checkpoint made")
        context.store.checkpoint_made(intent, self._checkpoint)
        return self._checkpoint

    def _keep_state_files(self) -> None:
        """Have the state files of the checkpoint's moment: the VM may be started before the commit,
        as soon as the host allows it."""
        if self._state_files is None:
            self._state_files = self.context.source.state_files(self.machine)

    def _release(self) -> dict[str, str]:
        assert self._checkpoint is not None
        try:
            trackers = self.context.source.release_checkpoint(self._checkpoint)
        except FilesHeldOpen:
            self._is_held = True
            raise
        self._is_released = True
        if self.context.growth is not None:
            self.context.growth.released(self.machine.id)
        self.context.store.checkpoint_released(self._intent)
        killpoints.reach("released")
        return trackers

    # --- plan --------------------------------------------------------------------------------

    def _plans(
        self,
        repository: RepositoryView,
        state: TargetState,
        checkpoint: Checkpoint,
        matches: DiskMatches,
    ) -> dict[str, DiskPlan]:
        """By controller place, with what the report has to say of them."""
        plans = self._disk_plans(repository, state, checkpoint, matches)
        if self._has_lying_tracker(plans, checkpoint):
            plans = self._disk_plans(repository, state, checkpoint, matches)
        for plan in plans.values():
            disk = DiskReport(plan.disk_id, plan.place, plan.mode.value, plan.reason)
            disk.virtual_size = plan.virtual_size
            disk.read = self._sampled.get(plan.place, 0)
            self.report.disks.append(disk)
            known = any(held.disk_id == plan.disk_id for held in state.disks)
            if plan.is_unforeseen:
                self._alarm("full", f"disk {plan.place}: {plan.mode.value}: {plan.reason}")
            elif plan.mode is Mode.NEW_CHAIN or (
                known and not self._is_mapped and _is_compared_anew(plan)
            ):
                self.report.warnings.append(f"disk {plan.place}: {plan.reason}")
        for removed in matches.removed:
            if any(held.disk_id == removed.id for held in state.disks):
                self.report.warnings.append(
                    f"disk {removed.place} is gone from the VM; older points keep it"
                )
        return plans

    def _disk_plans(
        self,
        repository: RepositoryView,
        state: TargetState,
        checkpoint: Checkpoint,
        matches: DiskMatches,
    ) -> dict[str, DiskPlan]:
        return facts.disk_plans(
            self.context.job,
            self.machine,
            checkpoint,
            matches,
            state,
            repository,
            self.key,
            self.context.source,
            self.crew,
            self.context.store.changed_history(self._identity),
            lost_points=self._lost_points,
            distrust=self.context.store.tracker_distrust(self.context.job.name, self.machine.name),
        )

    def _has_lying_tracker(self, plans: dict[str, DiskPlan], checkpoint: Checkpoint) -> bool:
        """Read samples of what the tracker calls unchanged, and compare them with the repository's
        digests. One difference: an alarm, and until that is acknowledged nobody believes the
        tracker of this VM."""
        disks = {disk.place: disk for disk in checkpoint.disks}
        lies = []
        with ThreadPoolExecutor(1, thread_name_prefix="sample") as pool:
            for plan in plans.values():
                if not plan.samples:
                    continue
                found = self._scanned(pool, plan, disks[plan.place], plan.samples)
                self._sampled[plan.place] = int(found["read"])
                if found["changed"]:
                    lies.append(f"{plan.place} ({format_bytes(int(found['changed']))})")
        if lies:
            self._alarm(
                TRACKER,
                f"the host's change tracker called unchanged what had changed on disk "
                f"{', '.join(lies)}: it is not believed for this VM, whose disks are read whole, "
                f"until `standby job acknowledge {self.context.job.name}`",
            )
        return bool(lies)

    def _replan(
        self,
        repository: RepositoryView,
        checkpoint: Checkpoint,
        place: str,
    ) -> DiskPlan:
        """How to go on with one disk whose transfer failed: from what the target holds now."""
        held = self.crew.target.call("inspect_replica", path=self._path)
        state = msgspec.convert(held, TargetState)
        matches = match_disks(self.report.replica, state.known_disks, self.machine.disks)
        return self._disk_plans(repository, state, checkpoint, matches)[place]

    def _check_space(self, checkpoint: Checkpoint, plans: dict[str, DiskPlan], free: int) -> None:
        """A first full must fit before anything is sent; later ones are stopped by the file
        system and go on when there is room. What the source stores may be zeros, which take no room
        at the target: where all of it might not fit, the disks are read first, and only what is
        sure not to fit is refused."""
        wanted = [plan for plan in plans.values() if plan.mode is Mode.FULL]
        most = sum(plan.space.value for plan in wanted)
        if most <= free:
            return
        disks = {disk.place: disk for disk in checkpoint.disks}
        needed = 0
        with self._step("count"), ThreadPoolExecutor(1, thread_name_prefix="count") as pool:
            for plan in wanted:
                needed += self._counted(pool, plan, disks[plan.place])
                if needed > free:
                    raise DiskFull(self._path, needed, free)
        self.report.warnings.append(
            f"the first full could have taken up to {format_bytes(most)} and "
            f"{format_bytes(free)} are free, so its disks were read before: it takes "
            f"{format_bytes(needed)}"
        )

    def _counted(self, pool: Executor, plan: DiskPlan, disk: CheckpointDisk) -> int:
        """Bytes of the blocks that a first full of the disk makes (RULES 13): read beside this
        thread, which looks at the checkpoint's age as the transfer does."""
        found = self._scanned(pool, plan, disk)
        return int(found["blocks"]) * default_block_size(plan.virtual_size)

    def _scanned(
        self,
        pool: Executor,
        plan: DiskPlan,
        disk: CheckpointDisk,
        samples: Sequence[Extent] | None = None,
    ) -> dict[str, Any]:
        """What `_scan` finds, while the checkpoint is not too old."""
        limit = self.context.job.checkpoint_max_age_s
        scanning = pool.submit(self._scan, plan, disk, samples)
        while not wait([scanning], timeout=LOOK_S).done:
            age_s = self.context.clock.monotonic() - self._checkpoint_started
            if limit and age_s > limit:
                self.crew.cut()
                wait([scanning])
                raise CheckpointLimit(self.machine.name, f"age {limit} s")
        return scanning.result()

    def _scan(
        self, plan: DiskPlan, disk: CheckpointDisk, samples: Sequence[Extent] | None
    ) -> dict[str, Any]:
        """How the disk differs from zeros, or in `samples` from the repository's digests, by
        reading that."""
        task = f"{'count' if samples is None else 'sample'} {plan.place} {new_token(4)}"
        wanted = DiskTask(task, "", plan.place, plan.disk_id, disk.files, self.key)
        with self.crew.disk_link(wanted) as link:
            arguments: dict[str, Any] = {
                "task": task,
                "connection": link.at_source,
                "disk": link.disk,
                "repository": "" if samples is None else link.repository,
                "replica": self.key,
                "disk_id": plan.disk_id,
                "session": "",
                "point_id": "",
                "checkpoint_id": disk.identity,
                "baseline": "none" if samples is None else "repository",
                "builds_on_repository": samples is not None,
                "candidates": None
                if samples is None
                else [(extent.offset, extent.length) for extent in samples],
                "resume_mark": 0,
                "compression": "none",
                "virtual_size": plan.virtual_size,
                "expected": link.expected(self.machine.name, disk),
            }
            if samples is not None:
                link.serve_leaves(arguments, stages=False)
            found: dict[str, Any] = link.source.call("scan_disk", **arguments)
        return found

    def _point_id(self, state: TargetState) -> str:
        """The interrupted point's id, so that it is continued, else a new one."""
        waiting = [item.point_id for item in state.partials if item.point_id > state.newest]
        return max(waiting) if waiting else new_point_id(self.context.clock, state.newest)


def _is_compared_anew(plan: DiskPlan) -> bool:
    """Whether the repository's digests, which should be there, are of no use."""
    return plan.mode is Mode.INCREMENTAL and plan.baseline == "target"
