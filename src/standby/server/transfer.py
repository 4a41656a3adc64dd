"""The transfer of one VM's disks: each disk a task, several at once, none waited for without end.

A task that fails leaves the others to finish: what they bring stays at the target and is not sent
again. What ends all of them at once is the checkpoint's age limit: both movers are cut off, close
their files, and the next session goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import PurePosixPath
from typing import Any

from standby import killpoints
from standby.clock import new_token
from standby.errors import CheckpointLimit, LinkError, MoverDied, StandbyError, VerifyFailed
from standby.model.machine import Checkpoint, CheckpointDisk, Machine
from standby.model.report import DiskReport
from standby.server.context import SessionContext
from standby.server.crew import Crew, DiskLink, DiskTask, replica_name
from standby.server.plan import DiskPlan, Mode

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
    ) -> None:
        self._context = context
        self._machine = machine
        self._crew = crew
        self._path = path
        self._key = key
        self._point = point
        self._checkpoint = checkpoint
        self._reports = reports
        self._files = {disk.place: PurePosixPath(disk.file).name for disk in machine.disks}

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
        name = f"{self._machine.name} {plan.place} {new_token(4)}"
        wanted = DiskTask(
            name,
            self._machine.name,
            plan.place,
            plan.disk_id,
            self._key,
            size_bytes=plan.send.value,
        )
        with self._crew.disk_link(wanted) as link:
            self._begin(plan, disk)
            return self._send(plan, disk, name, link)

    def _begin(self, plan: DiskPlan, disk: CheckpointDisk) -> None:
        self._crew.target.call(
            "begin_disk",
            path=self._path,
            disk_id=plan.disk_id,
            point=self._point,
            checkpoint=self._checkpoint.id,
            virtual_size=disk.virtual_size,
            logical_sector_size=disk.logical_sector_size,
            physical_sector_size=disk.physical_sector_size,
            page83=disk.page83,
            has_parent=plan.has_parent,
            copy=plan.copies_chain,
            seed=plan.uses_seed,
            seed_name=self._files.get(plan.place, ""),
        )
        killpoints.reach("child created")

    def _send(self, plan: DiskPlan, disk: CheckpointDisk, task: str, link: DiskLink) -> str:
        context = self._context
        receiving = self._crew.target.start(
            "receive_disk",
            path=self._path,
            disk_id=plan.disk_id,
            task=task,
            connection=link.at_target,
            verify_writes=context.job.verify_writes,
        )
        try:
            sending = link.source.start(
                "send_disk",
                task=task,
                connection=link.at_source,
                disk={"root": link.root, "files": list(disk.files)},
                repository=link.repository,
                replica=self._key,
                disk_id=plan.disk_id,
                session=context.session,
                point_id=self._point,
                checkpoint_id=self._checkpoint.id,
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
        except StandbyError:
            self._crew.cut()  # nobody sends: the receiver would wait
            raise
        sent, received = both(sending, receiving)
        report = self._reports[plan.disk_id]
        report.read, report.changed = sent["read"], sent["changed"]
        report.zeroed, report.sent = sent["zeroed"], sent["sent"]
        report.skipped = max(0, plan.allocated - sent["read"])
        report.written = received["written"]
        report.resent_blocks = received["resent_blocks"]
        report.busy_s = {**sent["busy_s"], **received["busy_s"]}
        if sent["root"] != received["root"]:
            raise VerifyFailed(replica_name(self._path), plan.disk_id, 0)
        return str(sent["root"])

    # --- waiting -----------------------------------------------------------------------------

    def _watch(self, pending: set[Future[str]], started: float) -> None:
        """Until all tasks have ended: report progress, and end them past the age limit. Nothing
        here waits for a mover, which may hang."""
        context = self._context
        limit = context.job.checkpoint_max_age_s
        asked: Future[Any] | None = None
        while pending:
            _, pending = wait(pending, timeout=PROGRESS_INTERVAL_S)
            if pending and limit and context.clock.monotonic() - started > limit:
                self._crew.cut()
                wait(pending)
                raise CheckpointLimit(self._machine.name, f"age {limit} s")
            if context.progress is None:
                continue
            with contextlib.suppress(StandbyError):
                if asked is None:
                    asked = self._crew.source.start("progress")
                elif asked.done():
                    answer, asked = asked, None
                    self._show(answer.result())

    def _show(self, progress: dict[str, list[int]]) -> None:
        assert self._context.progress is not None
        for task, (done, total) in progress.items():
            machine, place, _ = task.rsplit(" ", 2)
            self._context.progress(machine, place, done, total)


def both(sending: Future[Any], receiving: Future[Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of both ends of a task, or the error that explains."""
    wait([sending, receiving])
    failures = [error for end in (receiving, sending) if (error := end.exception()) is not None]
    if failures:
        raise most_telling(failures)
    return sending.result(), receiving.result()


def most_telling(failures: list[BaseException]) -> BaseException:
    """A broken link is what one end sees of the other's error, or death."""

    def rank(error: BaseException) -> int:
        if isinstance(error, MoverDied):
            return 1
        return 2 if isinstance(error, LinkError) else 0

    return min(failures, key=rank)
