"""One VM through one session: checkpoint, plan, transfer, commit, retention.

The order is the design's: prepare → checkpoint → transfer and read-back → release → commit on the
target (*that* is the restore point) → commit in the repository → older tracker ids given up →
ready layer renewed → retention. Every step can be repeated after a kill at any line; what a killed
session left is finished or taken up at the next session's prepare.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial

import msgspec

from standby import killpoints
from standby.errors import (
    CertificateRefused,
    CheckpointLimit,
    DiskError,
    DiskFull,
    Fenced,
    IllegalTransition,
    LinkError,
    MoverDied,
    ProtocolError,
    ReplicaMissing,
    RepositoryBusy,
    RepositoryError,
    SessionStopped,
    StandbyError,
)
from standby.model.machine import Checkpoint, Machine
from standby.model.replica import (
    Action,
    ReplicaIdentity,
    ReplicaState,
    legal_actions,
    legal_commands,
)
from standby.model.report import DiskReport, MachineReport
from standby.road.naming import new_point_id
from standby.road.points import DiskMatches, TargetState, match_disks
from standby.server import facts
from standby.server.context import ProgressCallback, SessionContext, TaskSlots
from standby.server.crew import Crew, RepositoryView, replica_name
from standby.server.journey import Journey, JourneyBook, age_s
from standby.server.plan import DiskPlan, Mode
from standby.server.remote_host import impatient
from standby.server.retention import changed_share, is_changed_share_unusual
from standby.server.store import CHANGED_SHARE
from standby.server.transfer import Transfer

__all__ = ["MachineDriver", "ProgressCallback", "SessionContext", "TaskSlots"]


class MachineDriver:
    """Drives one VM; `run` never raises, the report says how it ended."""

    def __init__(
        self,
        context: SessionContext,
        machine: Machine,
        crew: Crew,
        journey: Journey | None = None,
    ) -> None:
        """`journey`: a transfer that the crew's movers were left with, to be gone on with."""
        self.context = context
        self.machine = machine
        self.crew = crew
        self.report = MachineReport(machine.name, machine.id)
        self.is_broken = False
        self.is_link_trouble = False
        """Whether it was a mover, or the way to it, that ended the session."""
        self.is_refusal = False
        """Whether a mover said that it was asked for something it does not know, as one does that
        was started anew; or its certificate is refused."""
        self.repository_error: RepositoryError | None = None
        """The damage of the repository that the session met, if that is why it failed."""
        self._identity = ReplicaIdentity(
            context.installation, context.source.name, machine.id, context.job.name
        )
        self.key = facts.repository_key(self._identity)
        self._path = ""
        self._checkpoint: Checkpoint | None = None
        self._state_files: dict[str, str] | None = None
        self._is_released = False
        self._is_mapped = False
        self._lost_points = 0
        self._journey = journey
        self._book = JourneyBook(context, machine.id)

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
            self.is_broken = True
            self.is_link_trouble = isinstance(exc, MoverDied | LinkError)
            self.is_refusal = isinstance(exc, ProtocolError | CertificateRefused)
            if self.context.is_cancelled.is_set():  # that is why the movers were cut off
                report.error = str(SessionStopped(self.context.job.name, self.machine.name))
        except StandbyError as exc:
            report.outcome, report.error = "failed", str(exc)
            self.is_broken = True
            if isinstance(exc, RepositoryError) and not isinstance(exc, RepositoryBusy):
                self.repository_error = exc
        except Exception as exc:  # a bug: one VM's trouble is not the other VMs'
            traceback.print_exc(file=sys.stderr)
            report.outcome, report.error = "failed", f"unexpected {type(exc).__name__}: {exc}"
            self.is_broken = True
        finally:
            self._end()
        if report.point and report.outcome != "skipped":
            # The point is committed: what failed after it is made good by the next session.
            if report.outcome != "done":
                report.warnings.append(f"after the commit of {report.point}: {report.error}")
            report.outcome, report.error = "done", ""
        return report

    def _alarm(self, kind: str, text: str) -> None:
        """For the report, and for the list of alarms that a person has to acknowledge."""
        self.report.alarms.append(text)
        self.context.store.raise_alarm(kind, self.context.job.name, self.machine.name, text)

    def _end(self) -> None:
        """Whatever happened: the checkpoint is released, the lease given back. But what another
        server took over is that one's."""
        try:
            self.context.store.check()
        except StandbyError:
            self.report.warnings.append("left to the server that has taken over")
            return
        self._book.end()
        if self._checkpoint is not None and not self._is_released:
            with contextlib.suppress(StandbyError):  # `release_left` tries again, and says so
                self._release()
        if self._path and self.is_broken:
            self.crew.cut()  # the target's end of it closes the replica too
        elif self._path:
            try:
                self.crew.target.call("close_replica", path=self._path)
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
        with self._step("start movers"):  # they have been starting side by side
            for ping in [mover.start("ping") for mover in (self.crew.source, self.crew.target)]:
                ping.result()
        repository = self.crew.open_repository()
        try:
            if self._journey is not None:
                with self._step("join"):
                    journey = self._joined(self._journey)
            else:
                journey = self._begun(repository)
            checkpoint, plans, point = journey.checkpoint, journey.plans, journey.point
            with self._step("transfer"):
                roots = self._transfer(journey, partial(self._replan, repository, checkpoint))
            with self._step("release"):
                self._keep_state_files()  # of a journey that was joined
                context.source.confirm_checkpoint(checkpoint)
                trackers = self._release()
            with self._step("commit"):
                self._commit(checkpoint, plans, point, roots, trackers)
                self.report.point = point
                self._book.drop()
            # Nobody is waited for any more as a transfer waits: the next session makes good.
            source = impatient(context.source, self.crew.hurry())
            with self._step("repository"):
                self._commit_repository(repository, point, roots)
                older = self.crew.target.call("older_trackers", path=self._path)
                with self._left_to_the_next():
                    source.forget_tracker(self.machine, older)
                killpoints.reach("older tracker ids given up")
            self.report.outcome = "done"
            with self._step("ready layer"):
                ready = self.crew.target.call("renew_ready", path=self._path)
                self.crew.keep_replica_machine(self._path, self.machine, ready)
            with self._step("retention"):
                self._retain(repository)
        finally:
            repository.close()

    def _begun(self, repository: RepositoryView) -> Journey:
        """Everything up to the transfer."""
        with self._step("prepare"):
            state = self._prepare(repository)
            matches = match_disks(self.report.replica, state.known_disks, self.machine.disks)
            self._register(matches)
            free = int(self.crew.target.call("free_bytes", path=self._path))
        # From here to the release nothing waits for the target but the transfer, which has the
        # checkpoint's age limit: no link holds the source hostage.
        with self._step("checkpoint"):
            checkpoint = self._take_checkpoint()
        with self._step("plan"):
            plans = self._plans(repository, state, checkpoint, matches)
            self._check_space(plans, free)
        journey = Journey(
            self.crew.name,
            self.crew.target_proxy,
            self._path,
            self.report.replica,
            self._point_id(state),
            state.generation,
            self._intent,
            checkpoint,
            plans,
            self.report.disks,
            self.report.warnings,
        )
        if self.crew.can_retry:
            self._book.begin(journey)
        return journey

    def _joined(self, journey: Journey) -> Journey:
        """Go on with what a process that died left: the mover still has the replica open for it,
        else this raises ProtocolError and the VM is begun anew."""
        self._path, self.report.replica = journey.path, journey.replica
        self._intent, self._checkpoint = journey.intent, journey.checkpoint
        age = age_s(journey.checkpoint.taken_at, self.context.clock)
        self._checkpoint_started = self.context.clock.monotonic() - age
        self.report.disks = journey.reports
        for disk in self.report.disks:  # those that had ended tell all that they sent once more
            if disk.place in journey.senders:
                disk.sent = journey.senders[disk.place].sent_before
        self.report.warnings = [*journey.warnings, "went on with what another process began"]
        self.crew.target.call("points", path=self._path)
        self._book.begin(journey)
        return journey

    # --- prepare -----------------------------------------------------------------------------

    def _prepare(self, repository: RepositoryView) -> TargetState:
        """Open the replica as its one writer; finish what a killed session left."""
        context = self.context
        known = context.store.known_replica(self._identity)
        is_known = known is not None and known.points > 0
        with contextlib.suppress(RepositoryError):
            is_known = is_known or bool(repository.points(self.key))
        found = self.crew.target.call(
            "open_replica",
            root=self.crew.target_root,
            identity=msgspec.to_builtins(self._identity),
            wanted=self.machine.name + context.job.suffix,
            session=self.crew.name or context.session,  # by which its movers end it
            take_over=context.take_over,
            must_exist=not context.accept_loss and is_known,
            expected=known.path if known is not None else self.crew.target_root,
        )
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

    def _remember(self, state: ReplicaState, points: list[str], count: int | None = None) -> None:
        newest = points[-1] if points else ""
        self.context.store.remember_replica(
            self._identity,
            self.report.replica,
            self._path,
            state.value,
            newest,
            len(points) if count is None else count,
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
        trackers = self.context.source.release_checkpoint(self._checkpoint)
        self._is_released = True
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
        for plan in plans.values():
            disk = DiskReport(plan.disk_id, plan.place, plan.mode.value, plan.reason)
            disk.virtual_size = plan.virtual_size
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
            self.crew.source_root,
            self.crew.source,
            self.context.store.changed_history(self._identity),
            lost_points=self._lost_points,
        )

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

    def _check_space(self, plans: dict[str, DiskPlan], free: int) -> None:
        """A first full must fit before anything is sent; later ones are stopped by the file
        system and go on when there is room."""
        needed = sum(plan.space.value for plan in plans.values() if plan.mode is Mode.FULL)
        if needed > free:
            raise DiskFull(self._path, needed, free)

    def _point_id(self, state: TargetState) -> str:
        """The interrupted point's id, so that it is continued, else a new one."""
        waiting = [item.point_id for item in state.partials if item.point_id > state.newest]
        return max(waiting) if waiting else new_point_id(self.context.clock, state.newest)

    # --- transfer ----------------------------------------------------------------------------

    def _transfer(
        self,
        journey: Journey,
        replan: Callable[[str], DiskPlan],
    ) -> dict[str, str]:
        """Send every disk; the digest roots as the source computed them, hex, by disk id."""
        reports = {report.disk_id: report for report in self.report.disks}
        transfer = Transfer(
            self.context,
            self.machine,
            self.crew,
            self._path,
            self.key,
            journey.point,
            journey.checkpoint,
            reports,
            journey.generation,
            replan,
            self._book,
            dict(journey.senders) if self._journey is not None else {},
        )
        try:
            roots = transfer.run(journey.plans, self._checkpoint_started)
            self._book.sent()
            return roots
        except BaseException:
            self._book.drop()
            raise
        finally:
            self.report.warnings.extend(transfer.warnings)
            for disk in reports.values():
                lost = "; ".join(dict.fromkeys(transfer.losses.get(disk.place, ())))
                if lost:
                    on = f"; it went on through {disk.proxy}" if disk.proxy else ""
                    self.report.warnings.append(f"disk {disk.place}: {lost}{on}")
                if disk.resent_blocks:
                    self._alarm(
                        "read-back",
                        f"disk {disk.place}: {disk.resent_blocks} blocks read back wrong and were "
                        "resent; check the target's storage",
                    )

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
        self.crew.target.call(
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
            state_files=self._state_files or {},
            changed_bytes=sum(disk.changed for disk in self.report.disks),
        )

    def _commit_repository(
        self, repository: RepositoryView, point: str, roots: dict[str, str]
    ) -> None:
        """The point exists already: trouble here costs time next session, nothing else."""
        digests = {disk: bytes.fromhex(root) for disk, root in roots.items()}
        try:
            repository.commit(self.key, point, digests)
        except (RepositoryError, DiskError) as exc:
            self.report.warnings.append(f"{exc}; the next session compares with the target")
            with contextlib.suppress(RepositoryError, DiskError, LinkError, MoverDied):
                repository.discard(self.key)
        except (LinkError, MoverDied) as exc:
            self.report.warnings.append(f"repository: {exc}; the next session compares with it")
        killpoints.reach("repository commit")

    @contextlib.contextmanager
    def _left_to_the_next(self) -> Iterator[None]:
        """What a mover that is away keeps from being done is a warning: the next session does
        it."""
        try:
            yield
        except (LinkError, MoverDied) as exc:
            self.report.warnings.append(f"left to the next session: {exc}")

    # --- retention ---------------------------------------------------------------------------

    def _retain(self, repository: RepositoryView) -> None:
        """Merge away what is over the job's count, unless this session looks like ransomware."""
        context = self.context
        share = changed_share(self.report)
        history = context.store.changed_share_history(self.report.replica, 10)
        is_held = context.store.holds_retention(self._identity)
        if share is not None and is_changed_share_unusual(history, share):
            text = (
                f"{share:.1%} of the disks changed, far more than usual; retention is held until "
                f"`standby job acknowledge {context.job.name}`"
            )
            self._alarm(CHANGED_SHARE, text)
            is_held = True
        points: list[str]
        if is_held:
            points = self.crew.target.call("points", path=self._path)
        else:
            points = self.crew.target.call("points", path=self._path)
            # What retention may leave is written down first: after a kill in the middle of it
            # fewer points are no loss.
            keep = context.job.restore_points
            self._remember(ReplicaState.READY, points, min(len(points), keep))
            kept = self.crew.target.call("retire_points", path=self._path, keep=keep)
            points = kept["points"]
            self.report.warnings.extend(kept["warnings"])
            with contextlib.suppress(RepositoryError, DiskError, LinkError, MoverDied):
                repository.drop_points(self.key, set(points))
        self._remember(ReplicaState.READY, points)


def _is_compared_anew(plan: DiskPlan) -> bool:
    """Whether the repository's digests, which should be there, are of no use."""
    return plan.mode is Mode.INCREMENTAL and plan.baseline == "target"
