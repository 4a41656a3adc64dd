"""The transfer of one VM's disks: each disk a task, several at once, none waited for without end.

A task that fails leaves the others to finish: what they bring stays at the target and is not sent
again. Where several machines take part (`Crew.can_retry`), a disk whose proxy died, lost its
storage or its link goes on through another proxy, or through the same one when it is back, from
what the target holds by then; past WAN accelerators that fail it goes directly. What ends all of
them at once is the checkpoint's age limit: the movers are cut off, close their files, and the next
session goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from standby import killpoints
from standby.clock import Clock, new_token
from standby.errors import (
    CertificateRefused,
    CheckpointLimit,
    DiskError,
    LinkError,
    MoverDied,
    ProtocolError,
    StandbyError,
    VerifyFailed,
)
from standby.model.machine import Checkpoint, CheckpointDisk, Machine
from standby.model.report import DiskReport, WanReport
from standby.server.context import SessionContext
from standby.server.crew import Crew, DiskLink, DiskTask, Handle, replica_name
from standby.server.journey import JourneyBook, Sender
from standby.server.plan import DiskPlan, Mode
from standby.server.service_mover import Reconnect
from standby.server.task_ends import GRACE_S, both, most_telling, one_end_failed
from standby.server.waits import LOOK_S
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
        self._path = path
        self._key = key
        self._point = point
        self._checkpoint = checkpoint
        self._reports = reports
        self._generation = generation
        self._replan = replan
        self._book = book
        self._running = dict(running or {})
        self._senders: dict[str, Handle] = {}
        self._relays: dict[str, Handle] = {}
        """By task: the source's accelerator, of those that go over one."""
        self._sent: dict[str, int] = {}
        """By task: bytes sent to the other site when its mover last said so."""
        self._read: dict[str, int] = {}
        """The same of bytes read."""
        self._at_target: set[str] = set()
        """Tasks that a trouble of the target's end ended."""
        self._kept: dict[str, tuple[int, int]] = {}
        """By place: bytes of data, and of zeros, that earlier attempts of the session brought."""
        self.losses: dict[str, list[str]] = {}
        """By controller place: who was lost while the disk was sent, and why."""
        self.warnings: list[str] = []
        """What else there is to say of disks."""
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
                        self._attend(task, link)
                        self._kept[plan.place] = running.written_before, running.zeroed_before
                        return self._rejoin(plan, task, link)
                with self._crew.disk_link(wanted) as link:
                    proxy, wan, began = link.proxy, link.wan, clock.monotonic()
                    if link.left_wan:
                        without_wan = self._leave_wan(plan, link.left_wan, failed_wan)
                    self._attend(task, link)
                    self._begin(plan, disk, task)
                    return self._send(plan, disk, task, link)
            except StandbyError as exc:
                self._count_lost(plan, task)
                if task in self._at_target and not _is_link_trouble(exc):
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
                self._senders.pop(task, None)
                self._relays.pop(task, None)

    def _attend(self, task: str, link: DiskLink) -> None:
        """Have the task's movers asked how far they are."""
        self._senders[task] = link.source
        if link.wan is not None:
            self._relays[task] = link.wan.pair.source

    def _rejoin(self, plan: DiskPlan, task: str, link: DiskLink) -> str:
        receiving = self._crew.target.start("rejoin", task=task, verb="receive_disk")
        sending = link.source.start("rejoin", task=task, verb="send_disk")
        if link.wan is not None:
            link.wan.rejoin(task)
        return self._ended(plan, task, link, sending, receiving)

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
        if not is_disk and not _is_link_trouble(error):
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

    def _count_lost(self, plan: DiskPlan, task: str) -> None:
        """What an attempt that failed did is in the report too, as far as its mover told."""
        report = self._reports[plan.disk_id]
        report.sent += self._sent.pop(task, 0)
        report.read += self._read.pop(task, 0)

    def _begin(self, plan: DiskPlan, disk: CheckpointDisk, task: str) -> None:
        self._at_target.add(task)
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
        self._at_target.discard(task)
        killpoints.reach("child created")

    def _send(self, plan: DiskPlan, disk: CheckpointDisk, task: str, link: DiskLink) -> str:
        context = self._context
        arguments: dict[str, Any] = {
            "task": task,
            "connection": link.at_source,
            "disk": {"root": link.root, "files": list(disk.files)},
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
                self._at_target.add(task)
            link.end_leaves(task)
            if link.wan is not None:
                link.wan.cancel(task)
            raise
        report = self._reports[plan.disk_id]
        # Each end tells of this attempt alone: what failed ones did is there already.
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
        if sent["root"] != received["root"]:
            raise VerifyFailed(replica_name(self._path), plan.disk_id)
        return str(sent["root"])

    def _on_the_wire(self, plan: DiskPlan, link: DiskLink, sent: int) -> int:
        """The bytes that went to the other site when the proxy sent so many."""
        if link.wan is None:
            return sent
        told, warnings = link.wan.told()
        self._reports[plan.disk_id].wan = told
        self.warnings += [f"disk {plan.place}: {text}" for text in warnings]
        return told.sent or sent

    # --- waiting -----------------------------------------------------------------------------

    def _watch(self, pending: set[Future[str]], started: float) -> None:
        """Until all tasks have ended: report progress, and end them past the age limit. Nothing
        here waits for a mover, which may hang."""
        context = self._context
        limit = context.job.checkpoint_max_age_s
        verb, asked = "", None
        turn = 0
        while pending:
            _, pending = wait(pending, timeout=PROGRESS_INTERVAL_S)
            if pending and limit and context.clock.monotonic() - started > limit:
                self._crew.cut()
                wait(pending)
                raise CheckpointLimit(self._machine.name, f"age {limit} s")
            if self._book is not None:
                self._book.under_way(self._so_far)
            if context.progress is None:
                continue
            with contextlib.suppress(StandbyError):
                if asked is None:
                    senders = {("progress", it.name): it for it in list(self._senders.values())}
                    relays = {("wan_progress", it.name): it for it in list(self._relays.values())}
                    turn = (turn + 1) % max(1, len(senders) + len(relays))
                    for (verb, _), mover in list((senders | relays).items())[turn : turn + 1]:
                        asked = mover.start_now(verb)
                elif asked.done():
                    answer, asked = asked, None
                    if verb == "progress":
                        self._show(answer.result())
                    else:
                        told = answer.result().items()
                        self._sent |= {task: it[0] for task, it in told if task in self._relays}

    def _so_far(self) -> list[DiskReport]:
        """The disks' reports, of those under way with what their movers said last."""
        running = {task.rsplit(" ", 2)[1]: task for task in list(self._senders)}
        found = []
        for report in self._reports.values():
            task = running.get(report.place, "")
            if task and not report.is_whole:
                sent = report.sent + self._sent.get(task, 0)
                read = report.read + self._read.get(task, 0)
                report = replace(report, sent=sent, read=read)
            found.append(report)
        return found

    def _show(self, progress: dict[str, list[int]]) -> None:
        assert self._context.progress is not None
        for task, (done, total, *more) in progress.items():
            if task not in self._senders:
                continue  # another session's, which asks for itself
            if more and task not in self._relays:
                self._sent[task] = more[0]
            if len(more) > 1:
                self._read[task] = more[1]
            machine, place, _ = task.rsplit(" ", 2)
            self._context.progress(machine, place, done, total)


def _is_link_trouble(error: StandbyError) -> bool:
    """Whether a mover, or the way to it, was lost, and not refused by the other side."""
    return isinstance(error, LinkError | MoverDied) and not isinstance(error, ProtocolError)


class Patience:
    """How long a disk whose only proxy fails is tried again."""

    def __init__(self, clock: Clock, reconnect: Reconnect) -> None:
        self._clock = clock
        self._every_s = reconnect.every_s
        self._until = clock.monotonic() + reconnect.for_s

    def wait(self, is_over: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the next attempt; False when it is too late for one, or `is_over`."""
        if self._clock.monotonic() >= self._until:
            return False
        left_s = self._every_s
        while left_s > 0 and not is_over():
            self._clock.sleep(min(LOOK_S, left_s))
            left_s -= LOOK_S
        return not is_over()
