"""The transfer of one VM's disks: each disk a task, several at once, none waited for without end.

A task that fails leaves the others to finish: what they bring stays at the target and is not sent
again. Where several machines take part (`Crew.can_retry`), a disk whose proxy died, lost its
storage or its link goes on through another proxy, or through the same one when it is back, from
what the target holds by then; past WAN accelerators that fail it goes directly. What ends all of
them at once is the checkpoint's age limit: the movers are cut off, close their files, and the next
session goes on.

This is who sends a disk, and what is made of a failure; `attempts` is one attempt, `under_way` what
is told meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

from standby.clock import new_token
from standby.errors import CertificateRefused, CheckpointLimit, DiskError, StandbyError
from standby.model.machine import Checkpoint, CheckpointDisk, Machine
from standby.model.report import DiskReport, WanReport
from standby.server.attempts import Attempts
from standby.server.context import SessionContext
from standby.server.crew import Crew, DiskTask
from standby.server.journey import JourneyBook, Sender
from standby.server.patience import Patience, is_link_trouble
from standby.server.plan import DiskPlan, Mode
from standby.server.task_ends import most_telling
from standby.server.under_way import UnderWay
from standby.server.wan_link import WanTries, added

PROGRESS_INTERVAL_S = 0.25


class Transfer:
    """Sends the disks of `plans` for one point. `reports` are filled in, by disk id."""

    def __init__(
        self,
        context: SessionContext,
        machine: Machine,
        crew: Crew,
        path: str,
        key: str,
        point: str,
        checkpoint: Checkpoint,
        reports: Mapping[str, DiskReport],
        generation: int = 0,
        replan: Callable[[str], DiskPlan] | None = None,
        book: JourneyBook | None = None,
        running: Mapping[str, Sender] | None = None,
    ) -> None:
        """`replan` says, by controller place, how to go on with a disk after a failure, from what
        the target holds now; without it a failed disk stays failed. `running` are transfers, by
        place, that another process began and that are joined; `book` records who sends what."""
        self._context = context
        self._machine = machine
        self._crew = crew
        self._key = key
        self._checkpoint = checkpoint
        self._reports = reports
        self._generation = generation
        self._replan = replan
        self._book = book
        self._running = dict(running or {})
        self._attempts = Attempts(
            context, machine, crew, path, key, point, checkpoint, reports, book
        )
        self._under_way = UnderWay(context.progress, reports)
        self.losses: dict[str, list[str]] = {}
        """By controller place: who was lost while the disk was sent, and why."""

    @property
    def warnings(self) -> list[str]:
        """What else there is to say of disks."""
        return self._attempts.warnings

    def run(self, plans: Mapping[str, DiskPlan], started: float) -> dict[str, str]:
        """Send every disk; the digest roots as the source computed them, hex, by disk id.
        `started` is the monotonic time of the checkpoint. Raises CheckpointLimit past its limit,
        else the error that explains best what went wrong, when all tasks have ended."""
        disks = {disk.place: disk for disk in self._checkpoint.disks}
        todo = [plan for plan in plans.values() if plan.mode is not Mode.EXCLUDED]
        with ThreadPoolExecutor(max(1, len(todo)), thread_name_prefix="disk task") as pool:
            tasks = {pool.submit(self._disk, plan, disks[plan.place]): plan for plan in todo}
            self._watch(set(tasks), started)
        failures = [error for task in tasks if (error := task.exception()) is not None]
        if failures:
            raise most_telling(failures)
        return {plan.disk_id: task.result() for task, plan in tasks.items()}

    def _disk(self, plan: DiskPlan, disk: CheckpointDisk) -> str:
        """Send the disk, through as many proxies as it takes."""
        failed: dict[str, StandbyError] = {}
        clock = self._context.clock
        patience, tries = Patience(clock, self._crew.reconnect), WanTries()
        without_wan = ""
        failed_wan = WanReport(self._context.job.wan)
        while True:
            running = self._running.pop(plan.place, None)
            task = running.task if running else f"{self._machine.name} {plan.place} {new_token(4)}"
            wanted = DiskTask(
                task,
                self._machine.name,
                plan.place,
                plan.disk_id,
                disk.files,
                self._key,
                self._generation,
                plan.send.value,
                frozenset(failed),
                may_use_wan=not without_wan,
            )
            proxy = running.proxy if running else ""
            wan, began = None, clock.monotonic()
            try:
                if running is not None:
                    with self._crew.joined_link(wanted, running.proxy, running.wan) as link:
                        wan = link.wan
                        self._under_way.begun(task, link)
                        return self._attempts.rejoin(plan, running, link)
                with self._crew.disk_link(wanted) as link:
                    proxy, wan, began = link.proxy, link.wan, clock.monotonic()
                    if link.left_wan:
                        without_wan = self._leave_wan(plan, link.left_wan, failed_wan)
                    self._under_way.begun(task, link)
                    self._attempts.begin(plan, disk, task)
                    return self._attempts.send(plan, disk, task, link)
            except StandbyError as exc:
                self._under_way.count_lost(task, self._reports[plan.disk_id])
                if task in self._attempts.failed_at_target and not is_link_trouble(exc):
                    raise  # another proxy would meet it too
                why = ""
                if wan is not None:
                    tries.ended(clock.monotonic() - began)
                    failed_wan = added(failed_wan, wan.told_of_failure(task))
                    why = wan.why_left(exc, tries)
                if why and self._may_go_on(proxy):
                    without_wan = self._leave_wan(plan, why, failed_wan)
                    plan = self._planned_again(plan, exc)
                else:
                    plan = self._replanned(plan, exc, proxy, failed, patience)
            finally:
                self._under_way.ended(task)

    def _replanned(
        self,
        plan: DiskPlan,
        error: StandbyError,
        proxy: str,
        failed: dict[str, StandbyError],
        patience: Patience,
    ) -> DiskPlan:
        """How to go on after `error` of `proxy`; raises it where that makes no sense."""
        if not self._may_go_on(proxy):
            raise error
        is_disk = isinstance(error, DiskError) and proxy not in failed
        if not is_disk and not is_link_trouble(error):
            raise error
        is_again = proxy in failed
        failed[proxy] = error
        is_definite = isinstance(error, CertificateRefused)
        end = self._context.end_of(self._machine.name)
        if is_again and (is_definite or not patience.wait(end)):
            raise error
        if self._context.is_cancelled.is_set() or self._crew.is_broken:
            raise error
        again = self._planned_again(plan, error)
        self.losses.setdefault(plan.place, []).append(f"{proxy} was lost ({error})")
        return again

    def _may_go_on(self, proxy: str) -> bool:
        """Whether another attempt at a disk that `proxy` sent could be made."""
        crew = self._crew
        if not crew.can_retry or crew.is_broken or self._context.is_cancelled.is_set():
            return False
        return bool(proxy) and self._replan is not None

    def _planned_again(self, plan: DiskPlan, error: StandbyError) -> DiskPlan:
        """The disk's plan from what the target holds after `error`; fails where that is the
        trouble."""
        assert self._replan is not None
        again = self._replan(plan.place)
        report = self._reports[plan.disk_id]
        report.retries += 1
        report.reason = f"{report.reason}; went on after: {error}"
        return again

    def _leave_wan(self, plan: DiskPlan, why: str, before: WanReport) -> str:
        """The disk goes directly from now on; `why`. `before` is what the pair did until then."""
        self._reports[plan.disk_id].wan = replace(before, left=why)
        pair = self._context.job.wan
        text = f"disk {plan.place}: sent directly, not over WAN accelerators {pair}: {why}"
        self.warnings.append(text)
        return why

    # --- waiting -----------------------------------------------------------------------------

    def _watch(self, pending: set[Future[str]], started: float) -> None:
        """Until all tasks have ended: report progress, and end them past the age limit. Nothing
        here waits for a mover, which may hang."""
        context = self._context
        limit = context.job.checkpoint_max_age_s
        while pending:
            if grown := self._growth():
                self._crew.cut()
                wait(pending)
                raise CheckpointLimit(self._machine.name, grown)
            _, pending = wait(pending, timeout=PROGRESS_INTERVAL_S)
            if pending and limit and context.clock.monotonic() - started > limit:
                self._crew.cut()
                wait(pending)
                raise CheckpointLimit(self._machine.name, f"age {limit} s")
            if self._book is not None:
                self._book.under_way(self._under_way.so_far)
            self._under_way.ask()

    def _growth(self) -> str:
        """The limit of growth that the checkpoint has reached, '' for none."""
        watch, job = self._context.growth, self._context.job
        return watch.reached(self._machine.id, job.checkpoint_max_growth) if watch else ""
