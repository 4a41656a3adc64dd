"""Which tasks of one VM are under way, and how far, as their movers say."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from standby.errors import StandbyError
from standby.model.report import DiskReport
from standby.server.context import ProgressCallback
from standby.server.crew import DiskLink, Handle


class UnderWay:
    """The tasks that are being sent. Tasks come and go from any thread; one thread asks.

    Nothing here waits for a mover, which may hang.
    """

    def __init__(
        self, progress: ProgressCallback | None, reports: Mapping[str, DiskReport]
    ) -> None:
        """`progress` is told what is asked for; `reports` are those of the VM's disks, by id."""
        self._progress = progress
        self._reports = reports
        self._senders: dict[str, Handle] = {}
        self._relays: dict[str, Handle] = {}
        """By task: the source's accelerator, of those that go over one."""
        self._sent: dict[str, int] = {}
        """By task: bytes sent to the other site when its mover last said so."""
        self._read: dict[str, int] = {}
        """The same of bytes read."""
        self._asked: tuple[str, Future[Any]] | None = None
        self._turn = 0

    def begun(self, task: str, link: DiskLink) -> None:
        """Have the task's movers asked how far they are."""
        self._senders[task] = link.source
        if link.wan is not None:
            self._relays[task] = link.wan.pair.source

    def ended(self, task: str) -> None:
        """Its movers are asked no more."""
        self._senders.pop(task, None)
        self._relays.pop(task, None)

    def count_lost(self, task: str, report: DiskReport) -> None:
        """What an attempt that failed did is in the report too, as far as its mover told."""
        report.sent += self._sent.pop(task, 0)
        report.read += self._read.pop(task, 0)

    def ask(self) -> None:
        """Ask the next mover in turn, or take the answer of the one that was asked last."""
        if self._progress is None:
            return
        with contextlib.suppress(StandbyError):
            if self._asked is None:
                senders = {("progress", it.name): it for it in list(self._senders.values())}
                relays = {("wan_progress", it.name): it for it in list(self._relays.values())}
                self._turn = (self._turn + 1) % max(1, len(senders) + len(relays))
                found = list((senders | relays).items())[self._turn : self._turn + 1]
                for (verb, _), mover in found:
                    future = mover.start_now(verb)
                    self._asked = (verb, future) if future is not None else None
            elif self._asked[1].done():
                (verb, answer), self._asked = self._asked, None
                if verb == "progress":
                    self._show(answer.result())
                else:
                    told = answer.result().items()
                    self._sent |= {task: it[0] for task, it in told if task in self._relays}

    def so_far(self) -> list[DiskReport]:
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

    def _show(self, told: Mapping[str, list[int]]) -> None:
        assert self._progress is not None
        for task, (done, total, *more) in told.items():
            if task not in self._senders:
                continue  # another session's, which asks for itself
            if more and task not in self._relays:
                self._sent[task] = more[0]
            if len(more) > 1:
                self._read[task] = more[1]
            machine, place, _ = task.rsplit(" ", 2)
            self._progress(machine, place, done, total)
