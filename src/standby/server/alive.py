"""Which sessions of this installation are alive, across processes, and what dead ones left.

A session holds the lock of its job (`store.job_lock`) as long as its process lives: whoever gets
that lock knows that nothing of the job is alive. A session that a backup server has in its queue
begins the same way, so that `standby job start` and a server never run one job twice. Only a server
that hangs may keep that lock from the one that took over from it, which then goes on without: the
one that hangs is fenced, by its lease and replica by replica.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence

from standby.clock import Clock
from standby.errors import JobBusy, UnknownName
from standby.model.report import SessionReport
from standby.ports import Host, IntentReleasing
from standby.server.store import JobLock, ServerLease, Store


def at_work(store: Store, found: Sequence[SessionReport]) -> set[str]:
    """The ids of those sessions that a living process is at: it holds the job's lock."""
    open_jobs = {item.job for item in found if not item.outcome}
    busy = {job for job in open_jobs if store.job_lock(job).is_taken()}
    return {item.id for item in found if not item.outcome and item.job in busy}


class Alive:
    """The sessions whose state is in one database."""

    def __init__(self, store: Store, clock: Clock, lease: ServerLease | None = None) -> None:
        """`lease` is that of the active server, where this is its process."""
        self._store = store
        self._clock = clock
        self._lease = lease
        self._hung: set[str] = set()

    def lock(self, job: str) -> JobLock:
        """The job's lock, not taken."""
        return self._store.job_lock(job)

    @contextlib.contextmanager
    def one_session(self, job: str, take_over: bool) -> Iterator[tuple[bool, bool]]:
        """One session per job at a time, across processes; ends with the process. (True, False),
        or (True, True) where a server that is fenced hangs with the job's lock. With `take_over` a
        second one may run beside one that hangs, and fences it replica by replica: False then."""
        lock = self.lock(job)
        is_alone = lock.acquire()
        is_hung = not is_alone and self._is_of_fenced(job)
        if not is_alone and not is_hung and not take_over:
            raise JobBusy(
                job,
                "a session is running already",
                "Wait for it to end, end it with `standby job stop`, or fence one that hangs with "
                "--take-over",
            )
        try:
            yield is_alone or is_hung, is_hung
        finally:
            lock.release()

    def _is_of_fenced(self, job: str) -> bool:
        """Whether whoever has the job's lock is a server from which this one took over: all that is
        unfinished of the job belongs to sessions that this one adopted."""
        if self._lease is None:
            return False
        mine = (self._lease.server, self._lease.generation)
        found = [report.id for report in self._store.unfinished_sessions() if report.job == job]
        for report in found:
            try:
                run = self._store.queue.session(report.partition(".")[0])
            except UnknownName:  # of a command line, which nobody fences
                return False
            if (run.server, run.generation) != mine:
                return False
        if found:
            self._hung.add(job)
        return job in self._hung

    def end_dead_sessions(self, ours: str) -> None:
        """Say of sessions without an end that they were interrupted, where they are not alive. The
        lock of the job `ours` is held by the caller."""
        for report in self._store.unfinished_sessions():
            with self._if_idle(report.job, ours) as is_idle:
                if is_idle:
                    report.outcome = "interrupted"
                    for machine in report.machines:
                        machine.outcome = machine.outcome or "interrupted"
                    report.ended_at = self._clock.now().isoformat()
                    self._store.save_session(report)

    def release_dead_checkpoints(
        self, ours: str, hosts: Mapping[str, Host], kept: Collection[str] = ()
    ) -> list[str]:
        """Release the checkpoints of dead sessions of this installation, of any job (RULES 10);
        what was released, by name. The lock of the job `ours` is held by the caller; `kept` are the
        intents whose transfers are gone on with."""
        released = []
        for intent in self._store.open_intents():
            if intent.id in kept:
                continue
            owner = ours  # of a session that nobody knows any more
            with contextlib.suppress(UnknownName):
                owner = self._store.session(intent.session).job
            with self._if_idle(owner, ours) as is_idle:
                if not is_idle:
                    continue
                if intent.checkpoint is not None and intent.host in hosts:
                    hosts[intent.host].release_checkpoint(intent.checkpoint)
                    released.append(f"checkpoint {intent.checkpoint.id[:12]}")
                elif isinstance(host := hosts.get(intent.host), IntentReleasing):
                    released += host.release_intent(intent.id)
                self._store.checkpoint_released(intent.id)
        return released

    @contextlib.contextmanager
    def _if_idle(self, job: str, ours: str) -> Iterator[bool]:
        """Whether no session of `job` is alive: none begins while the block runs."""
        lock = self.lock(job)
        try:
            yield job == ours or lock.acquire()
        finally:
            lock.release()
