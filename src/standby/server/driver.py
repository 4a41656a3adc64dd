"""One VM through one session: checkpoint, plan, transfer, commit, retention.

The order is the design's: prepare → checkpoint → transfer and read-back → release → commit on the
target (*that* is the restore point) → commit in the repository → older tracker ids given up →
ready layer renewed → retention. Every step can be repeated after a kill at any line; what a killed
session left is finished or taken up at the next session's prepare.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from standby import killpoints
from standby.clock import SYSTEM_CLOCK, Clock, new_token
from standby.errors import (
    CheckpointLimit,
    DiskError,
    DiskFull,
    Fenced,
    IllegalTransition,
    LinkError,
    MoverDied,
    ReplicaMissing,
    RepositoryError,
    StandbyError,
    VerifyFailed,
)
from standby.model.job import ReplicationJob
from standby.model.machine import Checkpoint, CheckpointDisk, Machine
from standby.model.replica import Action, ReplicaIdentity, ReplicaState, legal_actions
from standby.model.report import DiskReport, MachineReport
from standby.ports import Host
from standby.repository import Repository
from standby.road.naming import new_point_id
from standby.road.points import DiskMatches, TargetState, match_disks
from standby.server import facts
from standby.server.movers import MoverPair
from standby.server.plan import DiskPlan, Mode
from standby.server.retention import changed_share, is_changed_share_unusual
from standby.server.store import Store

ProgressCallback = Callable[[str, str, int, int], None]
"""Called as progress(machine, disk place, bytes scanned, bytes to scan) from any thread."""

PROGRESS_INTERVAL_S = 0.25


@dataclass(frozen=True, slots=True)
class SessionContext:
    """What all VMs of a session share."""

    session: str
    installation: str
    job: ReplicationJob
    source: Host
    source_root: Path
    target_root: Path
    repository: Path
    store: Store
    take_over: bool = False
    accept_loss: bool = False
    progress: ProgressCallback | None = None
    clock: Clock = field(default_factory=lambda: SYSTEM_CLOCK)
    after_commit: Callable[[Path, Machine, dict[str, str]], None] | None = None
    """Called with the replica's folder, the VM and {place: ready layer} after each commit: makes
    or updates the replica VM on the target host."""


class MachineDriver:
    """Drives one VM; `run` never raises, the report says how it ended."""

    def __init__(self, context: SessionContext, machine: Machine, movers: MoverPair) -> None:
        self.context = context
        self.machine = machine
        self.movers = movers
        self.report = MachineReport(machine.name, machine.id)
        self.is_broken = False
        self._identity = ReplicaIdentity(
            context.installation, context.source.name, machine.id, context.job.name
        )
        self._key = facts.repository_key(self._identity)
        self._path = ""
        self._checkpoint: Checkpoint | None = None
        self._is_released = False

    def run(self) -> MachineReport:
        """Bring one new restore point of the VM to the target."""
        report = self.report
        try:
            self._run()
        except IllegalTransition as exc:
            report.outcome = "skipped"
            report.warnings.append(str(exc))
        except (Fenced, CheckpointLimit, MoverDied, LinkError) as exc:
            report.outcome, report.error = "interrupted", str(exc)
            self.is_broken = isinstance(exc, MoverDied | LinkError)
        except StandbyError as exc:
            report.outcome, report.error = "failed", str(exc)
            self.is_broken = True
        finally:
            self._end()
        return report

    def _end(self) -> None:
        """Whatever happened: the checkpoint is released, the lease given back."""
        if self._checkpoint is not None and not self._is_released:
            try:
                self._release()
            except StandbyError as exc:
                self.report.alarms.append(f"checkpoint not released: {exc}")
        if self._path and not self.is_broken:
            try:
                self.movers.target.call("close_replica", path=self._path)
            except StandbyError as exc:
                self.is_broken = True
                self.report.warnings.append(str(exc))

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[None]:
        started = self.context.clock.monotonic()
        try:
            yield
        finally:
            elapsed = self.context.clock.monotonic() - started
            steps = self.report.steps_s
            steps[name] = steps.get(name, 0.0) + elapsed

    def _run(self) -> None:
        context = self.context
        repository = Repository(context.repository)
        try:
            with self._step("prepare"):
                state = self._prepare(repository)
            with self._step("checkpoint"):
                checkpoint = self._take_checkpoint()
            with self._step("plan"):
                matches = match_disks(self.report.replica, state.known_disks, self.machine.disks)
                plans = self._plans(repository, state, checkpoint, matches)
                self._check_space(state, plans)
            point = self._point_id(state)
            with self._step("transfer"):
                roots = self._transfer(state, checkpoint, matches, plans, point)
            with self._step("release"):
                context.source.confirm_checkpoint(checkpoint)
                trackers = self._release()
            with self._step("commit"):
                self._commit(checkpoint, plans, point, roots, trackers)
            with self._step("repository"):
                self._commit_repository(repository, point, roots)
                older = [disk.tracker_id for disk in state.disks if disk.tracker_id]
                context.source.forget_tracker(self.machine, older)
                killpoints.reach("older tracker ids given up")
            self.report.point = point
            self.report.outcome = "done"
            with self._step("ready layer"):
                ready = self.movers.target.call("renew_ready", path=self._path)
                if context.after_commit is not None:
                    context.after_commit(Path(self._path), self.machine, ready)
            with self._step("retention"):
                self._retain(repository)
        finally:
            repository.close()

    # --- prepare -----------------------------------------------------------------------------

    def _prepare(self, repository: Repository) -> TargetState:
        """Open the replica as its one writer; finish what a killed session left."""
        context = self.context
        known = context.store.known_replica(self._identity)
        found = self.movers.target.call(
            "open_replica",
            root=str(context.target_root),
            identity=msgspec.to_builtins(self._identity),
            wanted=self.machine.name + context.job.suffix,
            session=context.session,
            take_over=context.take_over,
            must_exist=known is not None and known.points > 0 and not context.accept_loss,
            expected=known.path if known is not None else "",
        )
        self._path = found["path"]
        self.report.replica = Path(self._path).name
        self.report.warnings.extend(found["warnings"])
        state = msgspec.convert(found["state"], TargetState)
        if known is not None and len(state.points) < known.points and not context.accept_loss:
            raise ReplicaMissing(
                self.report.replica,
                self._path,
                f"{len(state.points)} restore points where {known.points} were known",
            )
        if Action.SESSION not in legal_actions(state.state):
            raise IllegalTransition(
                self.report.replica,
                state.state.value,
                Action.SESSION.value,
                tuple(action.value for action in legal_actions(state.state)),
            )
        facts.converge_repository(repository, self._key, state)
        self._remember(state.state, list(state.points))
        return state

    def _remember(self, state: ReplicaState, points: list[str]) -> None:
        newest = points[-1] if points else ""
        self.context.store.remember_replica(
            self._identity, self.report.replica, self._path, state.value, newest, len(points)
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
        killpoints.reach("checkpoint made")
        context.store.checkpoint_made(intent, self._checkpoint)
        return self._checkpoint

    def _release(self) -> dict[str, str]:
        assert self._checkpoint is not None
        trackers = self.context.source.release_checkpoint(self._checkpoint)
        self._is_released = True
        self.context.store.checkpoint_released(self._intent)
        killpoints.reach("released")
        return trackers

    # --- plan --------------------------------------------------------------------------------

    def _plans(
        self,
        repository: Repository,
        state: TargetState,
        checkpoint: Checkpoint,
        matches: DiskMatches,
    ) -> dict[str, DiskPlan]:
        """By controller place."""
        plans = facts.disk_plans(
            self.context.job,
            self.machine,
            checkpoint,
            matches,
            state,
            repository,
            self._key,
            self.context.source,
            self.context.source_root,
            self.movers.source,
            self.context.store.changed_history(self._identity),
        )
        for plan in plans.values():
            disk = DiskReport(plan.disk_id, plan.place, plan.mode.value, plan.reason)
            disk.virtual_size = plan.virtual_size
            self.report.disks.append(disk)
            known = any(held.disk_id == plan.disk_id for held in state.disks)
            if known and plan.mode in (Mode.FULL, Mode.NEW_CHAIN):
                self.report.alarms.append(f"disk {plan.place}: {plan.mode.value}: {plan.reason}")
            elif known and plan.mode is Mode.INCREMENTAL and plan.baseline == "target":
                self.report.warnings.append(f"disk {plan.place}: {plan.reason}")
        for removed in matches.removed:
            if any(held.disk_id == removed.id for held in state.disks):
                self.report.warnings.append(
                    f"disk {removed.place} is gone from the VM; older points keep it"
                )
        return plans

    def _check_space(self, state: TargetState, plans: dict[str, DiskPlan]) -> None:
        """A first full must fit before anything is sent; later ones are stopped by the file
        system and go on when there is room."""
        needed = sum(plan.space.value for plan in plans.values() if plan.mode is Mode.FULL)
        free = int(self.movers.target.call("free_bytes", path=self._path))
        if needed > free:
            raise DiskFull(self._path, needed, free)

    def _point_id(self, state: TargetState) -> str:
        """The interrupted point's id, so that it is continued, else a new one."""
        waiting = [item.point_id for item in state.partials if item.point_id > state.newest]
        return max(waiting) if waiting else new_point_id(self.context.clock, state.newest)

    # --- transfer ----------------------------------------------------------------------------

    def _transfer(
        self,
        state: TargetState,
        checkpoint: Checkpoint,
        matches: DiskMatches,
        plans: dict[str, DiskPlan],
        point: str,
    ) -> dict[str, str]:
        """Send every disk; the digest roots as the source computed them, hex, by disk id."""
        disks = {disk.place: disk for disk in checkpoint.disks}
        todo = [plan for plan in plans.values() if plan.mode is not Mode.EXCLUDED]
        self.movers.target.call(
            "register_disks", path=self._path, disks=msgspec.to_builtins(matches.known)
        )
        for plan in todo:
            self._begin(plan, disks[plan.place], checkpoint, state, point)
        reports = {report.disk_id: report for report in self.report.disks}
        roots: dict[str, str] = {}
        limit = max(1, self.context.job.max_tasks)
        with ThreadPoolExecutor(limit, thread_name_prefix="disk task") as pool:
            tasks = {
                pool.submit(
                    self._send_disk, plan, disks[plan.place], checkpoint, point, reports
                ): plan
                for plan in todo
            }
            self._watch(tasks)
        failures = [task.exception() for task in tasks if task.exception() is not None]
        if failures:
            # A broken link is the symptom on one side of what the other side's error explains.
            failures.sort(key=lambda exc: isinstance(exc, LinkError))
            raise failures[0]  # type: ignore[misc]
        for task, plan in tasks.items():
            roots[plan.disk_id] = task.result()
        return roots

    def _begin(
        self,
        plan: DiskPlan,
        disk: CheckpointDisk,
        checkpoint: Checkpoint,
        state: TargetState,
        point: str,
    ) -> None:
        self.movers.target.call(
            "begin_disk",
            path=self._path,
            disk_id=plan.disk_id,
            point=point,
            checkpoint=checkpoint.id,
            virtual_size=disk.virtual_size,
            logical_sector_size=disk.logical_sector_size,
            physical_sector_size=disk.physical_sector_size,
            page83=disk.page83,
            has_parent=plan.has_parent,
            copy=plan.mode is Mode.NEW_CHAIN,
            seed=plan.mode is Mode.SEED,
        )
        killpoints.reach("child created")

    def _send_disk(
        self,
        plan: DiskPlan,
        disk: CheckpointDisk,
        checkpoint: Checkpoint,
        point: str,
        reports: dict[str, DiskReport],
    ) -> str:
        context = self.context
        task = f"{self.machine.name} {plan.place} {new_token(4)}"
        with self.movers.connection() as connection:
            receiving = self.movers.target.start(
                "receive_disk",
                path=self._path,
                disk_id=plan.disk_id,
                task=task,
                connection=connection,
                verify_writes=context.job.verify_writes,
            )
            sending = self.movers.source.start(
                "send_disk",
                task=task,
                connection=connection,
                disk={"root": str(context.source_root), "files": list(disk.files)},
                repository=str(context.repository),
                replica=self._key,
                disk_id=plan.disk_id,
                session=context.session,
                point_id=point,
                checkpoint_id=checkpoint.id,
                baseline=plan.baseline,
                builds_on_repository=plan.builds_on_repository,
                candidates=None
                if plan.candidates is None
                else [(extent.offset, extent.length) for extent in plan.candidates],
                resume_mark=plan.resume_mark,
                compression="none"
                if context.job.compression == "auto"
                else context.job.compression,
                virtual_size=disk.virtual_size,
            )
            sent, received = _both(sending, receiving)
        report = reports[plan.disk_id]
        report.read, report.changed = sent["read"], sent["changed"]
        report.zeroed, report.sent = sent["zeroed"], sent["sent"]
        report.skipped = max(0, plan.read.value - sent["read"])
        report.written = received["written"]
        report.resent_blocks = received["resent_blocks"]
        if report.resent_blocks:
            self.report.alarms.append(
                f"disk {plan.place}: {report.resent_blocks} blocks read back wrong and were resent"
            )
        report.busy_s = {**sent["busy_s"], **received["busy_s"]}
        if sent["root"] != received["root"]:
            raise VerifyFailed(self.report.replica, plan.disk_id, 0)
        return str(sent["root"])

    def _watch(self, tasks: dict[Future[str], DiskPlan]) -> None:
        """Wait for the tasks; report progress, and end them when the checkpoint is too old."""
        context = self.context
        pending = set(tasks)
        limit = context.job.checkpoint_max_age_s
        while pending:
            _, pending = wait(pending, timeout=PROGRESS_INTERVAL_S)
            if limit and context.clock.monotonic() - self._checkpoint_started > limit:
                self.is_broken = True
                self.movers.source.close()
                wait(pending)
                raise CheckpointLimit(self.machine.name, f"age {limit} s")
            if context.progress is not None and not self.is_broken:
                with contextlib.suppress(StandbyError):
                    for task, (done, total) in self.movers.source.call("progress").items():
                        machine, place, _ = task.rsplit(" ", 2)
                        context.progress(machine, place, done, total)

    # --- commit ------------------------------------------------------------------------------

    def _commit(
        self,
        checkpoint: Checkpoint,
        plans: dict[str, DiskPlan],
        point: str,
        roots: dict[str, str],
        trackers: dict[str, str],
    ) -> None:
        identities = {disk.place: disk.identity for disk in checkpoint.disks}
        self.movers.target.call(
            "commit_point",
            path=self._path,
            point=point,
            taken_at=checkpoint.taken_at,
            consistency=checkpoint.consistency,
            session=self.context.session,
            machine=msgspec.to_builtins(self.machine),
            disks=[
                {
                    "disk_id": plan.disk_id,
                    "place": plan.place,
                    "excluded": plan.mode is Mode.EXCLUDED,
                    "root": roots.get(plan.disk_id, ""),
                    "tracker_id": trackers.get(plan.place, ""),
                    "identity": identities[plan.place],
                }
                for plan in plans.values()
            ],
            state_files=self.context.source.state_files(self.machine),
            changed_bytes=sum(disk.changed for disk in self.report.disks),
        )

    def _commit_repository(self, repository: Repository, point: str, roots: dict[str, str]) -> None:
        """The point exists already: trouble here costs time next session, nothing else."""
        try:
            repository.commit(
                self._key, point, {disk: bytes.fromhex(root) for disk, root in roots.items()}
            )
        except (RepositoryError, DiskError) as exc:
            self.report.warnings.append(f"{exc}; the next session compares with the target")
            with contextlib.suppress(RepositoryError, DiskError):
                repository.discard(self._key)
        killpoints.reach("repository commit")

    # --- retention ---------------------------------------------------------------------------

    def _retain(self, repository: Repository) -> None:
        """Merge away what is over the job's count, unless this session looks like ransomware."""
        context = self.context
        share = changed_share(self.report)
        history = context.store.changed_share_history(self.report.replica, 10)
        is_held = context.store.holds_retention(self._identity)
        if share is not None and is_changed_share_unusual(history, share):
            text = (
                f"{share:.1%} of the disks changed, far more than usual; retention is held until "
                "`standby job acknowledge`"
            )
            self.report.alarms.append(text)
            context.store.raise_alarm("changed share", context.job.name, self.machine.name, text)
            is_held = True
        points: list[str]
        if is_held:
            points = self.movers.target.call("points", path=self._path)
        else:
            kept = self.movers.target.call(
                "retire_points", path=self._path, keep=context.job.restore_points
            )
            points = kept["points"]
            self.report.warnings.extend(kept["warnings"])
            with contextlib.suppress(RepositoryError, DiskError):
                repository.drop_points(self._key, set(points))
        self._remember(ReplicaState.READY, points)


def _both(sending: Future[Any], receiving: Future[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both results, or the error that explains: a link error only when there is no other."""
    wait([sending, receiving])
    errors = [item.exception() for item in (receiving, sending) if item.exception() is not None]
    if errors:
        errors.sort(key=lambda exc: isinstance(exc, LinkError | MoverDied))
        died = [exc for exc in errors if isinstance(exc, MoverDied)]
        raise (errors[0] if not isinstance(errors[0], LinkError) or not died else died[0])  # type: ignore[misc]
    return sending.result(), receiving.result()
