"""One attempt at one disk: begun at the target, sent, waited for at both ends, and reported."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future, wait
from typing import Any

from standby import killpoints
from standby.errors import StandbyError, VerifyFailed
from standby.model.machine import Checkpoint, CheckpointDisk, Machine
from standby.model.report import DiskReport
from standby.server.context import SessionContext
from standby.server.crew import Crew, DiskLink, replica_name
from standby.server.journey import JourneyBook, Sender
from standby.server.plan import DiskPlan
from standby.server.task_ends import GRACE_S, both, one_end_failed


class Attempts:
    """The attempts at the disks of one point, several disks at once. What each brings goes into
    `reports`, by disk id; `book` records who sends what."""

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
        book: JourneyBook | None,
    ) -> None:
        self._context = context
        self._machine = machine
        self._crew = crew
        self._path = path
        self._key = key
        self._point = point
        self._checkpoint = checkpoint
        self._reports = reports
        self._book = book
        self._kept: dict[str, tuple[int, int]] = {}
        """By place: bytes of data, and of zeros, that earlier attempts of the session brought."""
        self._files = {disk.place: disk.file_name for disk in machine.disks}
        self.failed_at_target: set[str] = set()
        """Tasks that a trouble of the target's end ended."""
        self.warnings: list[str] = []
        """What there is to say of disks beside their reports."""

    def begin(self, plan: DiskPlan, disk: CheckpointDisk, task: str) -> None:
        """Have the target make or resume what the disk is written to."""
        self.failed_at_target.add(task)
        held = self._crew.target.call(
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
            copy_of=plan.copies_of,
            seed=plan.uses_seed,
            seed_name=self._files.get(plan.place, ""),
        )
        data = int(held.get("data", 0))
        zeros = max(0, int(held.get("acknowledged", 0)) - data)
        key = self._machine.name, plan.disk_id
        first = self._context.found.setdefault(key, (data, zeros))
        self._kept[plan.place] = max(0, data - first[0]), max(0, zeros - first[1])
        self.failed_at_target.discard(task)
        killpoints.reach("child created")

    def send(self, plan: DiskPlan, disk: CheckpointDisk, task: str, link: DiskLink) -> str:
        """Send the disk, which was begun; its digest root, hex."""
        context = self._context
        arguments: dict[str, Any] = {
            "task": task,
            "connection": link.at_source,
            "disk": link.disk,
            "repository": link.repository,
            "replica": self._key,
            "disk_id": plan.disk_id,
            "session": context.session,
            "point_id": self._point,
            "checkpoint_id": self._checkpoint.id,
            "baseline": plan.baseline,
            "builds_on_repository": plan.builds_on_repository,
            "candidates": None
            if plan.candidates is None
            else [(extent.offset, extent.length) for extent in plan.candidates],
            "resume_mark": plan.resume_mark,
            "compression": link.compression(context.job.compression),
            "virtual_size": disk.virtual_size,
            "weight": context.job.weight,
            "expected": link.expected(self._machine.name, disk),
        }
        if self._book is not None and link.proxy:
            wan = link.wan.pair.name if link.wan is not None else ""
            read, kept = self._reports[plan.disk_id].read, self._kept[plan.place]
            self._book.sending(plan.place, Sender(task, link.proxy, wan, 0, read, *kept))
        receiving = self._crew.target.start(
            "receive_disk",
            path=self._path,
            disk_id=plan.disk_id,
            task=task,
            connection=link.at_target,
            verify_writes=context.job.verify_writes,
        )
        if link.wan is not None:
            self._start_wan(link, arguments, receiving)
        try:
            link.serve_leaves(arguments)
            sending = link.source.start("send_disk", **arguments)
        except StandbyError:
            self._crew.cut()  # nobody sends: the receiver would wait
            raise
        killpoints.reach("disk under way")
        return self._ended(plan, task, link, sending, receiving)

    def rejoin(self, plan: DiskPlan, running: Sender, link: DiskLink) -> str:
        """Wait for a disk that another process began to send; its digest root, hex."""
        task = running.task
        self._kept[plan.place] = running.written_before, running.zeroed_before
        receiving = self._crew.target.start("rejoin", task=task, verb="receive_disk")
        sending = link.source.start("rejoin", task=task, verb="send_disk")
        if link.wan is not None:
            link.wan.rejoin(task)
        return self._ended(plan, task, link, sending, receiving)

    def _start_wan(
        self, link: DiskLink, arguments: Mapping[str, Any], receiving: Future[Any]
    ) -> None:
        """Where an accelerator cannot be asked, nobody will send: the receiver ends."""
        assert link.wan is not None
        try:
            link.wan.start(arguments, self._path)
        except StandbyError:
            link.wan.cancel(arguments["task"])
            with contextlib.suppress(StandbyError):
                self._crew.target.start_now("cancel", task=arguments["task"])
            wait([receiving], GRACE_S)
            raise

    def _ended(
        self,
        plan: DiskPlan,
        task: str,
        link: DiskLink,
        sending: Future[Any],
        receiving: Future[Any],
    ) -> str:
        """The digest root, when both ends agree that everything is there."""
        try:
            if self._crew.can_retry:
                ends = {sending: link.source, receiving: self._crew.target}
                ends |= link.wan.ends if link.wan is not None else {}
                watch = self._crew.watch(task, link.source, link.wan)
                one_end_failed(task, ends, watch, (sending, receiving))
            sent, received = both(sending, receiving)
        except StandbyError as exc:
            if receiving.done() and receiving.exception() is exc:
                self.failed_at_target.add(task)
            link.end_leaves(task)
            if link.wan is not None:
                link.wan.cancel(task)
            raise
        self._report(plan, link, sent, received)
        if sent["root"] != received["root"]:
            raise VerifyFailed(replica_name(self._path), plan.disk_id)
        return str(sent["root"])

    def _report(
        self,
        plan: DiskPlan,
        link: DiskLink,
        sent: Mapping[str, Any],
        received: Mapping[str, Any],
    ) -> None:
        """Put what both ends told into the disk's report. Each tells of this attempt alone: what
        failed ones did is there already."""
        report = self._reports[plan.disk_id]
        written, zeroed = self._kept.pop(plan.place, (0, 0))
        report.read += sent["read"]
        # Of the whole point, where the target knows it: an earlier session brought a part of that.
        changed = received.get("changed")
        if changed is None:
            changed = min(report.virtual_size, sent["changed"] + written + zeroed)
        report.changed = changed
        self.warnings += received.get("warnings", ())
        report.zeroed = min(report.virtual_size, zeroed + sent["zeroed"])
        report.sent += self._on_the_wire(plan, link, sent["sent"])
        report.skipped = max(0, plan.allocated - report.read)
        report.written = written + received["written"]
        report.resent_blocks += received["resent_blocks"]
        report.proxy = link.proxy
        report.busy_s = {**sent["busy_s"], **received["busy_s"]}

    def _on_the_wire(self, plan: DiskPlan, link: DiskLink, sent: int) -> int:
        """The bytes that went to the other site when the proxy sent so many."""
        if link.wan is None:
            return sent
        told, warnings = link.wan.told()
        self._reports[plan.disk_id].wan = told
        self.warnings += [f"disk {plan.place}: {text}" for text in warnings]
        return told.sent or sent
