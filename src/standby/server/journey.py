"""How far the transfer of one VM is, recorded so that another process can go on with it.

Service movers finish what they were told whoever dies meanwhile (RULES 18). A server that starts
again, or one that takes over, finds here what runs where: it joins those very tasks, and goes on
behind them with release and commit. A journey begins when the disks are planned and can be joined
until the transfer ends; outside of that a session that died is begun anew, which costs no data
(RULES 8). Up to the commit it still says what was sent, for the report of that next attempt, which
finds everything at the target and would tell of nothing.

The figures of a transfer under way go into the VM's report now and then, wherever its movers are:
of a session that is killed it is all that is known.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from standby.clock import Clock
from standby.errors import StandbyError
from standby.model.job import ReplicationJob
from standby.model.machine import Checkpoint
from standby.model.report import DiskReport, MachineReport
from standby.road.points import parsed_time
from standby.server.context import SessionContext
from standby.server.plan import DiskPlan

FIGURES_EVERY_S = 5.0
"""How often the figures of a transfer are recorded: as often as the target acknowledges at the
least (RULES 7), and one small transaction per VM."""


@dataclass(frozen=True, slots=True)
class Sender:
    """A disk's transfer: the movers' id of it, the proxy that sends, and the pair of WAN
    accelerators that it goes over, '' none; `sent_before`, … bytes by earlier attempts."""

    task: str
    proxy: str
    wan: str = ""
    sent_before: int = 0
    read_before: int = 0
    written_before: int = 0
    zeroed_before: int = 0


@dataclass(slots=True)
class Journey:
    """A transfer under way. `crew` is what its movers call it; `plans` and `senders` are by
    controller place."""

    crew: str
    target_proxy: str
    path: str
    replica: str
    point: str
    generation: int
    intent: str
    checkpoint: Checkpoint
    plans: dict[str, DiskPlan]
    reports: list[DiskReport]
    warnings: list[str]
    senders: dict[str, Sender] = field(default_factory=dict)
    is_sent: bool = False
    """The transfer has ended well: nothing is left to be joined."""
    before: list[DiskReport] = field(default_factory=list)
    """What an earlier transfer for this point brought, which `reports` do not say until then."""


class JourneyBook:
    """The journey of one VM of a job in the state database."""

    def __init__(
        self, context: SessionContext, machine_id: str, report: MachineReport | None = None
    ) -> None:
        """`report` is the VM's in this session, which figures are recorded in."""
        self._context = context
        self._machine_id = machine_id
        self._report = report
        self._saving = threading.Lock()  # taken before the other
        self._lock = threading.Lock()
        self._journey: Journey | None = None
        self._changes = self._written = self._saved = 0
        self._told_at = context.clock.monotonic()

    def found(self) -> Journey | None:
        """What a process that died left, while its checkpoint may still be used; older ones, and
        those of another release, are dropped."""
        text = self._context.store.journey(self._context.job.name, self._machine_id)
        if not text:
            return None
        try:
            journey = msgspec.json.decode(text, type=Journey)
        except msgspec.MsgspecError:
            self.drop()
            return None
        is_old = is_too_old(self._context.job, journey.checkpoint.taken_at, self._context.clock)
        if is_old and not journey.is_sent:
            self.drop()
            return None
        return journey

    def begin(self, journey: Journey) -> None:
        """The disks are planned."""
        with self._lock:
            self._journey = journey
            change = self._changed()
        self._save(change)

    def sending(self, place: str, sender: Sender) -> None:
        """A disk is about to be sent. The store must know before the movers do: what it knows and
        they do not is planned again."""
        with self._lock:
            if self._journey is not None:
                sent = {report.place: report.sent for report in self._journey.reports}
                self._journey.senders[place] = replace(sender, sent_before=sent.get(place, 0))
            change = self._changed()
        self._save(change)

    def sent(self) -> None:
        """The transfer has ended well, and its disks' reports are whole. The checkpoint is not kept
        for the journey any more."""
        with self._lock:
            if self._journey is not None:
                self._journey.is_sent = True
            change = self._changed()
        with contextlib.suppress(StandbyError):  # it costs a report its figures
            self._save(change)

    def tell(self, disks: Sequence[DiskReport] | None = None) -> None:
        """Have the session's report say what the VM's is now, its disks as in `disks` (default: as
        in the report), in case that this process is killed."""
        if self._report is None:
            return
        self._told_at = self._context.clock.monotonic()
        disks = self._report.disks if disks is None else disks
        report = replace(self._report, disks=list(disks), steps_s=dict(self._report.steps_s))
        with contextlib.suppress(StandbyError):  # it costs a report its figures
            self._context.store.save_figures(self._context.session, report)

    def under_way(self, so_far: Callable[[], Sequence[DiskReport]]) -> None:
        """`tell` what `so_far()` says, if it is time for that."""
        if self._context.clock.monotonic() - self._told_at >= FIGURES_EVERY_S:
            self.tell(so_far())

    def drop(self) -> None:
        """The transfer has failed, or the point is committed."""
        with self._saving:
            with self._lock:
                self._journey = None
            with contextlib.suppress(StandbyError):
                self._context.store.drop_journey(self._context.job.name, self._machine_id)

    def end(self) -> None:
        """The attempt has ended, however it did: its own report tells what was sent."""
        with self._lock:
            is_open = self._journey is not None
        if is_open:
            self.drop()

    def _changed(self) -> int:
        """The number of a change; under `_lock`."""
        self._changes += 1
        return self._changes

    def _save(self, change: int) -> None:
        """Return when the store has that change. Disks that begin at once wait for one another
        here; whoever comes first saves for all that are there when its transaction begins."""
        with self._saving:
            if self._journey is None or self._saved >= change:
                return
            store = self._context.store
            store.save_journey(self._context.job.name, self._machine_id, self._newest)
            self._saved = self._written

    def _newest(self) -> tuple[str, str]:
        """The checkpoint's intent and the journey, as they are to be written now."""
        with self._lock:
            journey, self._written = self._journey, self._changes
            assert journey is not None  # `drop` waits for the end of saving
            intent = "" if journey.is_sent else journey.intent
            return intent, msgspec.json.encode(journey).decode()


def add_transfer(disks: Sequence[DiskReport], before: Sequence[DiskReport]) -> None:
    """Have the reports of `disks` count a whole transfer `before` theirs, which belongs to the same
    point: they found only what was new since. What changed is told by the target for both, or, of
    a disk that began with what was there, by each for itself."""
    found = {disk.place: disk for disk in before}
    for disk in disks:
        other = found.get(disk.place)
        if other is None:
            continue
        disk.sent += other.sent
        disk.read += other.read
        disk.written += other.written
        disk.changed = max(disk.changed, other.changed)
        disk.zeroed = min(disk.virtual_size, disk.zeroed + other.zeroed)
        disk.resent_blocks += other.resent_blocks


def age_s(taken_at: str, clock: Clock) -> float:
    """Seconds since then by the wall clock: nothing else outlives a process."""
    taken = parsed_time(taken_at)
    return max(0.0, (clock.now() - taken).total_seconds()) if taken is not None else 0.0


def is_too_old(job: ReplicationJob, taken_at: str, clock: Clock) -> bool:
    """Whether a checkpoint of then is past the job's limit."""
    limit = job.checkpoint_max_age_s
    return bool(limit) and age_s(taken_at, clock) > limit
