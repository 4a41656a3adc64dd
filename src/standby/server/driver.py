"""One VM through one session: checkpoint, plan, transfer, commit, retention.

The order is the design's: prepare → checkpoint → transfer and read-back → release → commit on the
target (*that* is the restore point) → commit in the repository → older tracker ids given up →
ready layer renewed → retention. Every step can be repeated after a kill at any line; what a killed
session left is finished or taken up at the next session's prepare. This is the order, and the
transfer; `preparing` is what comes before it, `committing` what comes after.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from standby import killpoints
from standby.errors import (
    CertificateRefused,
    CheckpointLimit,
    Fenced,
    IllegalTransition,
    LinkError,
    MoverDied,
    ProtocolError,
    RepositoryBusy,
    RepositoryError,
    SessionStopped,
    StandbyError,
)
from standby.model.machine import Checkpoint, Machine
from standby.model.report import DiskReport, MachineReport
from standby.ports import OpenFilesClosing
from standby.road.points import match_disks
from standby.server.committing import Committing
from standby.server.context import ProgressCallback, SessionContext, TaskSlots
from standby.server.crew import Crew, RepositoryView
from standby.server.journey import Journey, JourneyBook, add_transfer, age_s
from standby.server.plan import DiskPlan
from standby.server.preparing import Preparing
from standby.server.remote_host import impatient
from standby.server.transfer import Transfer

__all__ = ["MachineDriver", "ProgressCallback", "SessionContext", "TaskSlots"]


class MachineDriver(Preparing, Committing):
    """Drives one VM; `run` never raises, the report says how it ended."""

    def __init__(
        self,
        context: SessionContext,
        machine: Machine,
        crew: Crew,
        journey: Journey | None = None,
        before: Sequence[DiskReport] = (),
    ) -> None:
        """`journey`: a transfer that the crew's movers were left with, to be gone on with;
        `before`: what one that had ended brought, whose point was not committed."""
        super().__init__(context, machine, crew)
        self.is_broken = False
        self.is_link_trouble = False
        """Whether it was a mover, or the way to it, that ended the session."""
        self.is_refusal = False
        """Whether a mover said that it was asked for something it does not know, as one does that
        was started anew; or its certificate is refused."""
        self.repository_error: RepositoryError | None = None
        """The damage of the repository that the session met, if that is why it failed."""
        self._journey = journey
        self.before = before
        """As given, until the report says it."""
        self._book = JourneyBook(context, machine.id, self.report)

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

    def _end(self) -> None:
        """Whatever happened: the checkpoint is released, the lease given back. But what another
        server took over is that one's."""
        try:
            self.context.store.check()
        except StandbyError:
            self.report.warnings.append("left to the server that has taken over")
            return
        self._book.end()
        if self._checkpoint is not None and not self._is_released and not self._is_held:
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
                self.crew.check_replica_off(self._path)
                ready = self.crew.target.call("renew_ready", path=self._path)
                self.report.warnings.extend(
                    self.crew.keep_replica_machine(self._path, self.machine, ready)
                )
            with self._step("retention"):
                self._retain(repository)
        finally:
            repository.close()

    def _begun(self, repository: RepositoryView) -> Journey:
        """Everything up to the transfer."""
        with self._step("prepare"):
            state = self._prepare(repository)
            self.crew.check_replica_off(self._path)
            matches = match_disks(self.report.replica, state.known_disks, self.machine.disks)
            self._register(matches)
            free = int(self.crew.target.call("free_bytes", path=self._path))
        # From here to the release nothing waits for the target but the transfer, which has the
        # checkpoint's age limit: no link holds the source hostage.
        with self._step("checkpoint"):
            checkpoint = self._take_checkpoint()
        self.report.warnings += checkpoint.warnings
        with self._step("plan"):
            plans = self._plans(repository, state, checkpoint, matches)
        self._check_space(checkpoint, plans, free)
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
            before=list(self.before),
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
        self.report.disks, self.before = journey.reports, journey.before
        for disk in self.report.disks:  # those that had ended tell all that they sent once more
            if disk.place in journey.senders:
                disk.sent = journey.senders[disk.place].sent_before
                disk.read = journey.senders[disk.place].read_before
                disk.resent_blocks = 0
        self.report.warnings = [*journey.warnings, "went on with what another process began"]
        self.crew.target.call("points", path=self._path)
        self._book.begin(journey)
        return journey

    def _may_be_open(self, checkpoint: Checkpoint) -> None:
        """A mover was lost, or the transfer broken off: files may still be open at the host."""
        if isinstance(self.context.source, OpenFilesClosing):
            self.context.source.may_be_open(checkpoint)

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
        self._book.tell()
        try:
            roots = transfer.run(journey.plans, self._checkpoint_started)
            add_transfer(self.report.disks, self.before)
            self.before = ()
            self._book.sent()
            self._book.tell()
            return roots
        except BaseException:
            self._may_be_open(journey.checkpoint)
            self._book.drop()
            raise
        finally:
            self.report.warnings.extend(transfer.warnings)
            if transfer.losses:
                self._may_be_open(journey.checkpoint)
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
